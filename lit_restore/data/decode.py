"""Bytes of a shard's member → arrays. The header is checked against the limits before decoding."""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Callable, Mapping
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from lit_restore.data.batch import Sample
from lit_restore.errors import UserError
from lit_restore.io import arrays, failpoints, images

try:
    import simplejpeg
except ImportError:  # Pillow decodes too, somewhat slower
    simplejpeg = None

_APP1 = 0xE1
DECODER = "LIT_RESTORE_DECODER"
"""Environment variable: "pillow" decodes JPEG with Pillow where simplejpeg is installed too."""


def decoder_name() -> str:
    """The decoders and their versions: part of the data's fingerprint."""
    names = ["simplejpeg", "pillow"] if _simplejpeg_wanted() else ["pillow"]
    return "+".join(f"{name}-{importlib.metadata.version(name)}" for name in names)


Window: TypeAlias = Callable[[int, int], tuple[int, int, int, int]]
"""Height and width of a picture → the part that is needed: left, top, right, bottom in pixels."""


def decode_image(data: bytes, *, name: str, window: Window | None = None) -> npt.NDArray[np.uint8]:
    """An encoded picture as (H, W, 3) uint8 RGB; the array may be read-only.

    Args:
        data: JPEG, PNG or WebP bytes.
        name: the member's name for the error line.
        window: given for data that were checked when they were packed: what lies outside may then
            be of undefined content, which saves the time to decode it.

    Raises:
        UserError: not such a picture, damaged, above the size limit, or deeper than 8 bits.
    """
    failpoints.hit("data.decode")
    header = images.sniff(data, name=name)
    if header.format == "JPEG" and header.channels == 3 and not _may_be_turned(data):
        return _plain_jpeg(data, name, window and window(header.height, header.width))
    picture = images.read_picture(data, name=name).pixels
    if picture.dtype != np.uint8:
        raise UserError("16-bit pictures are not trained on; convert to 8 bits", where=name)
    pixels = picture.astype(np.uint8, copy=False)
    return pixels if pixels.shape[2] == 3 else np.repeat(pixels, 3, axis=2)


def _plain_jpeg(
    data: bytes, name: str, window: tuple[int, int, int, int] | None
) -> npt.NDArray[np.uint8]:
    if not _simplejpeg_wanted():
        return images.read_plain_jpeg(data, name=name, window=window)
    try:
        if window is not None:
            from lit_restore.data.jpeg_rows import decode_rows

            part = decode_rows(data, window[3])
            if part is not None:
                return part
        pixels: npt.NDArray[np.uint8] = simplejpeg.decode_jpeg(data, colorspace="RGB")
    except ValueError as error:
        raise UserError(f"not a readable JPEG ({error})", where=name) from None
    return pixels


def _simplejpeg_wanted() -> bool:
    return simplejpeg is not None and os.environ.get(DECODER) != "pillow"


def _may_be_turned(data: bytes) -> bool:
    """Whether a JPEG has an EXIF block, whose orientation only Pillow's path applies."""
    at = 2
    # Block by block: a marker, its length, its content.
    while data[at : at + 1] == b"\xff" and data[at + 1 : at + 2] not in b"\xff\xda":
        if data[at + 1] == _APP1 and data.startswith(b"Exif\0\0", at + 4):
            return True
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    # Padding, or no block where one should be: look everywhere.
    return data[at : at + 2] != b"\xff\xda" and b"Exif\0\0" in data[: 1 << 16]


def decode_label(data: bytes, *, name: str) -> int:
    """A class label, written as a decimal number.

    Raises:
        UserError: not a number.
    """
    text = data[:32].decode("ascii", errors="replace").strip()
    if not text.isdigit():
        raise UserError(f'label "{text}" is not a number', where=name)
    return int(text)


def decode_array(data: bytes, *, name: str) -> npt.NDArray[np.generic]:
    """A `.npy` array of plain numbers.

    Raises:
        UserError: damaged, holds Python objects or what PyTorch has not, or its size does not match
            its header.
    """
    return arrays.parse_numbers(data, name=name)


def decode_others(sample: Sample, data: Mapping[str, bytes], *, name: str) -> None:
    """Fill in a sample's fields beside its image.

    Args:
        sample: with its image.
        data: field (degraded, restored, label, array) → the member's bytes.
        name: the sample's name for the error line.

    Raises:
        UserError: a member cannot be decoded.
    """
    if "degraded" in data:
        sample.degraded = decode_image(data["degraded"], name=f"{name} (degraded)")
    if "restored" in data:
        sample.restored = decode_image(data["restored"], name=f"{name} (restored)")
    if "label" in data:
        sample.label = decode_label(data["label"], name=name)
    if "array" in data:
        sample.array = decode_array(data["array"], name=name)
