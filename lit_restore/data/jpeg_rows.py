"""The first rows of a JPEG, without the work for those below.

A crop needs the rows down to its lower edge only, but decoders offer all or nothing. The frame
header says how many rows there are; in a copy of the data that says fewer, the decoder stops after
those (ITU-T T.81, B.2.2). What it then finds unread it takes for damage, so damage is not looked
for here: this is for data that were checked when they were packed.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import simplejpeg

_SEQUENTIAL = (0xC0, 0xC1)
_SCAN = 0xDA
_END = b"\xff\xd9"
_CONTEXT = 2
"""Rows below that smooth chroma upsampling looks at."""


def decode_rows(data: bytes, rows: int) -> npt.NDArray[np.uint8] | None:
    """A JPEG whose first `rows` rows are decoded, the others of undefined content.

    Args:
        data: a whole file.
        rows: how many are needed, at least 1.

    Returns:
        (H, W, 3) uint8 RGB of the picture's full size, the first rows bit-equal to those of the
        whole picture decoded; None where there is nothing to save, or the file is not plain
        (sequential, one scan of three components, 8 bits, with its end).

    Raises:
        ValueError: the data cannot be decoded at all.
    """
    frame = _frame(data)
    if frame is None or not data.endswith(_END):
        return None
    at, height, width, unit = frame
    kept = -(-(rows + _CONTEXT) // unit) * unit
    if kept > height - unit:
        return None
    shortened = bytearray(data)
    shortened[at : at + 2] = kept.to_bytes(2, "big")
    pixels = np.empty((height, width, 3), np.uint8)
    simplejpeg.decode_jpeg(
        shortened, colorspace="RGB", buffer=pixels[:kept].reshape(-1), strict=False
    )
    return pixels


def _frame(data: bytes) -> tuple[int, int, int, int] | None:
    """Where the height stands, height, width, and rows of a coding unit, of a plain file."""
    at, found = 2, None
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        if marker == _SCAN:
            return found if data[at + 4] == 3 else None
        if marker in _SEQUENTIAL:
            if data[at + 4] != 8 or data[at + 9] != 3:
                return None
            height = int.from_bytes(data[at + 5 : at + 7], "big")
            width = int.from_bytes(data[at + 7 : at + 9], "big")
            sampling = max(data[at + 11 + 3 * component] & 15 for component in range(3))
            found = (at + 5, height, width, 8 * sampling)
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return None
        at += 2 + length
    return None
