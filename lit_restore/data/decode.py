"""Bytes of a shard's member → arrays. The header is checked against the limits before decoding."""

from __future__ import annotations

import importlib.metadata

import numpy as np
import numpy.typing as npt

from lit_restore.errors import UserError
from lit_restore.io import arrays, failpoints, images

try:
    import simplejpeg
except ImportError:  # Pillow decodes too, somewhat slower
    simplejpeg = None


def decoder_name() -> str:
    """The decoders and their versions: part of the data's fingerprint."""
    names = ["pillow"] if simplejpeg is None else ["simplejpeg", "pillow"]
    return "+".join(f"{name}-{importlib.metadata.version(name)}" for name in names)


def decode_image(data: bytes, *, name: str) -> npt.NDArray[np.uint8]:
    """An encoded picture as (H, W, 3) uint8 RGB.

    Args:
        data: JPEG, PNG or WebP bytes.
        name: the member's name for the error line.

    Raises:
        UserError: not such a picture, damaged, above the size limit, or deeper than 8 bits.
    """
    failpoints.hit("data.decode")
    header = images.sniff(data, name=name)
    plain = header.format == "JPEG" and header.channels == 3 and not _may_be_turned(data)
    if plain and simplejpeg is not None:
        try:
            pixels: npt.NDArray[np.uint8] = simplejpeg.decode_jpeg(data, colorspace="RGB")
        except ValueError as error:
            raise UserError(f"not a readable JPEG ({error})", where=name) from None
        return pixels
    picture = images.read_picture(data, name=name).pixels
    if picture.dtype != np.uint8:
        raise UserError("16-bit pictures are not trained on; convert to 8 bits", where=name)
    return np.ascontiguousarray(np.broadcast_to(picture, (*picture.shape[:2], 3)), dtype=np.uint8)


def _may_be_turned(data: bytes) -> bool:
    """Whether a JPEG has an EXIF block, whose orientation only Pillow's path applies."""
    return b"Exif\0\0" in data[: 1 << 16]


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
        UserError: damaged, holds Python objects, or its size does not match its header.
    """
    return arrays.parse_npy(data, name=name)
