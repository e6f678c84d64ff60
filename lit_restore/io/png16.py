"""16-bit PNG, of which Pillow keeps only the high bytes.

ISO/IEC 15948: chunks (5.3), one zlib stream over all IDAT (10.1), filters (9.2). Python loops over
anti-diagonals instead of pixels: a pixel needs its left, upper and upper-left neighbours only, so
all rows advance together, each one pixel behind the row above.
"""

from __future__ import annotations

import zlib

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]

_CHANNELS = {0: 1, 2: 3, 4: 2, 6: 4}


def decode_png16(data: bytes) -> npt.NDArray[np.uint16]:
    """All samples of a 16-bit PNG file.

    Args:
        data: the file; its header has been checked, its pixels need not be.

    Returns:
        (H, W, C) with C = 1 grey, 2 grey and alpha, 3 RGB, 4 RGB and alpha.

    Raises:
        ValueError: the file is interlaced, or its pixels are damaged or truncated.
    """
    width, height = (int.from_bytes(data[at : at + 4], "big") for at in (16, 20))
    if data[24] != 16 or data[25] not in _CHANNELS:
        raise ValueError("no 16-bit PNG")
    if data[28]:
        raise ValueError("interlaced 16-bit PNG, save it without interlacing")
    channels = _CHANNELS[data[25]]
    line = 1 + 2 * channels * width
    inflater = zlib.decompressobj()
    try:
        stream = inflater.decompress(_image_data(data), height * line + 1)
    except zlib.error:
        raise ValueError("damaged pixels") from None
    if len(stream) != height * line or not inflater.eof:
        raise ValueError("truncated" if len(stream) <= height * line else "damaged pixels")
    lines: Bytes = np.frombuffer(stream, np.uint8).reshape(height, line)
    stored = _unfilter(lines[:, 0], lines[:, 1:].reshape(height, width, 2 * channels))
    return stored.view(">u2").astype(np.uint16)


def _image_data(data: bytes) -> bytes:
    """The contents of all IDAT chunks, joined."""
    parts, at = [], 8
    while at + 8 <= len(data):
        size, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        if kind == b"IDAT":
            parts.append(data[at + 8 : at + 8 + size])
        at += 12 + size
    return b"".join(parts)


def _unfilter(kinds: Bytes, residuals: Bytes) -> Bytes:
    """Undoes the filters None, Sub, Up, Average and Paeth (9.2): x = residual + prediction.

    Args:
        kinds: (H,) filter of each row, 0 to 4.
        residuals: (H, W, bytes per pixel).
    """
    if kinds.max(initial=0) > 4:
        raise ValueError("damaged pixels")
    height, width, depth = residuals.shape
    padded = np.zeros((height + 1, width + 1, depth), np.uint8)
    for diagonal in range(height + width - 1):
        y = np.arange(max(0, diagonal - width + 1), min(height, diagonal + 1))
        x = diagonal - y
        left = padded[y + 1, x].astype(np.int16)
        up = padded[y, x + 1].astype(np.int16)
        corner = padded[y, x].astype(np.int16)
        predictions = (np.zeros_like(left), left, up, (left + up) >> 1, _paeth(left, up, corner))
        prediction = np.choose(kinds[y, None], predictions)
        padded[y + 1, x + 1] = (residuals[y, x] + prediction).astype(np.uint8)
    return np.ascontiguousarray(padded[1:, 1:])


def _paeth(
    left: npt.NDArray[np.int16], up: npt.NDArray[np.int16], corner: npt.NDArray[np.int16]
) -> npt.NDArray[np.int16]:
    """Of the three, the nearest to left + up - corner; ties in this order (9.4)."""
    to_left, to_up = np.abs(up - corner), np.abs(left - corner)
    to_corner = np.abs(left + up - 2 * corner)
    nearest_up = np.where(to_up <= to_corner, up, corner)
    return np.where((to_left <= to_up) & (to_left <= to_corner), left, nearest_up)
