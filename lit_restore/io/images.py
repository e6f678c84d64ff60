"""Pictures in and out: pixels exactly as stored, or one line that says why not.

Decoders silently drop alpha, clip 16 bits to 8, ignore colour profiles and show the first of many
frames; here each such case has a stated treatment (see `read_picture`). Headers are checked by
`sniff` before a decoder sees a byte.
"""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageCms, ImageColor

from lit_restore.errors import UserError
from lit_restore.io import fs
from lit_restore.io.image_headers import ImageHeader, check_size, sniff, unreadable
from lit_restore.io.png16 import decode_png16
from lit_restore.io.wording import shown

__all__ = [
    "ImageHeader",
    "Picture",
    "jpeg_bytes",
    "parse_colour",
    "png_bytes",
    "read_picture",
    "sniff",
    "webp_bytes",
    "write_png",
]

Pixels = npt.NDArray[np.uint8 | np.uint16]

FILE_LIMIT = 1000**3
"""Largest picture file, in bytes."""

_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_BITS_PER_SAMPLE, _PHOTOMETRIC = 258, 262
_ORIENTATION = 0x0112
_UPRIGHT = range(1, 9)

# What Pillow's plugins raise on bytes they cannot read.
_DECODER_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    LookupError,
    TypeError,
    AttributeError,
    OverflowError,
    RuntimeError,
    MemoryError,
    struct.error,
    zlib.error,
)


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture as it is stored, turned upright."""

    pixels: Pixels
    """(H, W, 3) RGB or (H, W, 1) grey; uint8, or uint16 with white at 65535."""
    profile: str | None
    """Description of the embedded colour profile where it is not sRGB; the pixels are left as they
    are stored then. None: sRGB, or nothing said."""
    name: str
    """The file or member."""


def read_picture(
    source: str | PathLike[str] | bytes, *, name: str | None = None, background: str | None = None
) -> Picture:
    """Read one JPEG, PNG, WebP or (8-bit, or 16-bit grey) TIFF picture.

    =======================  =============================================================
    transparency             error unless fully opaque, or laid on `background`
    16 bits                  kept, as uint16
    CMYK, Lab                converted to sRGB by the embedded profile; error without one
    profile other than sRGB  pixels as stored, `Picture.profile` names it
    EXIF orientation         applied
    several frames           error (a JPEG's first picture is its main one: phones append others)
    truncated                error
    =======================  =============================================================

    Args:
        source: a file, or its bytes.
        name: what to call it in error lines; the path by default.
        background: a colour name or ``#rrggbb`` to lay transparent pictures on.

    Raises:
        UserError: the file is missing, no such picture, above 50 megapixels, or one of the cases
            above.
    """
    if isinstance(source, bytes):
        data, called = source, name or "picture"
    else:
        data, called = fs.read_bytes(source, limit=FILE_LIMIT), name or str(source)
    is_tiff = data.startswith(_TIFF)
    header = None if is_tiff else sniff(data, name=called)
    with _decoding(called):
        image = _load(data, header.format if header else "TIFF", called)
        deep = header is not None and header.bits == 16
        stored: Pixels | None = _sixteen_bits(data, image) if deep else None
    profile, orientation = image.info.get("icc_profile"), _orientation(image)
    if image.mode in ("CMYK", "LAB"):
        image, profile = _to_srgb(image, profile, called), None
    stored = _stored(image, called) if stored is None else stored
    pixels = _upright(_opaque(stored, background, called), orientation)
    return Picture(pixels, _profile_name(profile), called)


def read_plain_jpeg(
    data: bytes, *, name: str, window: tuple[int, int, int, int] | None = None
) -> npt.NDArray[np.uint8]:
    """The pixels of a JPEG that is known to have three channels and to be upright.

    Args:
        data: the file.
        name: for error lines.
        window: left, top, right, bottom of the part that is needed; the rest is then undefined.

    Returns:
        (H, W, 3), as `read_picture` gives them, but read-only, which saves a copy.

    Raises:
        UserError: as `read_picture`.
    """
    with _decoding(name):
        image = _load(data, "JPEG", name)
        image = image if image.mode == "RGB" else image.convert("RGB")
        if window is None:
            return np.asarray(image, np.uint8)
        left, top, right, bottom = window
        pixels = np.empty((image.height, image.width, 3), np.uint8)
        pixels[top:bottom, left:right] = np.asarray(image.crop(window))
        return pixels


def png_bytes(pixels: npt.NDArray[np.uint8]) -> bytes:
    """(H, W, 3), (H, W, 1) or (H, W) uint8 pixels as a PNG without any metadata."""
    return _encoded(pixels, "PNG", compress_level=6)


def jpeg_bytes(pixels: npt.NDArray[np.uint8], quality: int) -> bytes:
    """The pixels as a JPEG of this quality (1 to 100), colour not subsampled (4:4:4)."""
    return _encoded(pixels, "JPEG", quality=quality, subsampling=0)


def webp_bytes(pixels: npt.NDArray[np.uint8], quality: int | None = None) -> bytes:
    """The pixels as WebP of this quality (0 to 100); lossless where `quality` is None."""
    if quality is None:
        return _encoded(pixels, "WEBP", lossless=True, quality=70, method=4)
    return _encoded(pixels, "WEBP", quality=quality, method=4)


def write_png(path: str | PathLike[str], pixels: npt.NDArray[np.uint8]) -> None:
    """Write the pixels as a PNG file, atomically."""
    fs.write_atomic(Path(path), png_bytes(pixels))


def _encoded(pixels: npt.NDArray[np.uint8], format: str, **options: int) -> bytes:
    assert pixels.dtype == np.uint8, pixels.dtype
    stream = io.BytesIO()
    grey = pixels.ndim == 3 and pixels.shape[2] == 1
    Image.fromarray(pixels[..., 0] if grey else pixels).save(stream, format, **options)
    return stream.getvalue()


@contextmanager
def _decoding(name: str) -> Iterator[None]:
    """Turns whatever a decoder raises into one line."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    except UserError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise UserError("is above 50 megapixels", where=name) from None
    except _DECODER_ERRORS as error:
        text = str(error).lower()
        cut = isinstance(error, EOFError) or "truncated" in text or "broken png" in text
        reason = "truncated" if cut else shown(str(error)) or type(error).__name__
        raise unreadable(reason, name) from None


def _load(data: bytes, format: str, name: str) -> Image.Image:
    """The one decoded picture in `data`."""
    image: Image.Image = Image.open(io.BytesIO(data), formats=(format,))
    check_size(*image.size, name)
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":
        raise UserError(f"{frames} frames, expected one picture", where=name)
    if format == "TIFF":
        _check_tiff(image, name)
    image.load()
    return image


def _check_tiff(image: Image.Image, name: str) -> None:
    """Refuse the TIFFs that Pillow reads into fewer bits, or with another meaning."""
    tags = getattr(image, "tag_v2", {})
    bits = tags.get(_BITS_PER_SAMPLE, (1,))
    most = max(bits) if isinstance(bits, tuple) else bits
    plain = image.mode == "I;16" and most == 16 and tags.get(_PHOTOMETRIC) == 1
    if most > 8 and not plain:
        kind = "floating-point" if image.mode == "F" else f"{most}-bit"
        raise UserError(f"{kind} TIFF; save it as a 16-bit PNG", where=name)


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except _DECODER_ERRORS:
        return 1  # an unreadable remark about the camera is no reason to lose the picture
    return value if value in _UPRIGHT else 1


def _to_srgb(image: Image.Image, profile: bytes | None, name: str) -> Image.Image:
    if not profile:
        raise UserError(f"{image.mode} without a colour profile; save it as RGB", where=name)
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        target = ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(image, source, target, outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        raise UserError(f"{image.mode} with a damaged colour profile", where=name) from None
    assert converted is not None
    return converted


def _stored(image: Image.Image, name: str) -> Pixels:
    """The channels as stored: grey, RGB, or either with alpha behind it."""
    mode = image.mode
    if image.has_transparency_data:
        return _array(image.convert("LA" if mode in ("L", "LA", "La") else "RGBA"))
    if mode in ("1", "L"):
        return _array(image.convert("L"))
    if mode in ("I;16", "I;16L", "I;16B"):
        return np.array(image).astype(np.uint16)[..., None]
    if mode in ("RGB", "P", "RGBX", "YCbCr"):
        return _array(image if mode == "RGB" else image.convert("RGB"))  # a copy saved
    raise UserError(f"pixels of kind {mode}; save it as an RGB PNG", where=name)


def _array(image: Image.Image) -> npt.NDArray[np.uint8]:
    pixels = np.array(image, np.uint8)
    return pixels if pixels.ndim == 3 else pixels[..., None]


def _sixteen_bits(data: bytes, image: Image.Image) -> npt.NDArray[np.uint16]:
    """All channels of a 16-bit PNG.

    Args:
        data: the file.
        image: the same as Pillow opened it, for the colour that stands for transparency.
    """
    pixels = decode_png16(data)
    key = image.info.get("transparency")
    if key is None or pixels.shape[2] in (2, 4):
        return pixels
    alpha = np.where((pixels == np.array(key)).all(-1, keepdims=True), 0, 65535)
    return np.concatenate([pixels, alpha.astype(np.uint16)], -1)


def _opaque(pixels: Pixels, background: str | None, name: str) -> Pixels:
    """Without the alpha channel (the last of 2 or 4)."""
    channels = pixels.shape[2]
    if channels in (1, 3):
        return pixels
    colour, alpha, white = pixels[..., :-1], pixels[..., -1:], np.iinfo(pixels.dtype).max
    if (alpha == white).all():
        return colour
    if background is None:
        raise UserError(
            "is partly transparent; give a background colour, or save it without alpha", where=name
        )
    behind = np.array(parse_colour(background), np.float64) * (white / 255)
    if channels == 2 and np.ptp(behind) == 0:
        behind = behind[:1]  # grey on grey stays grey
    weight = alpha / white
    mixed = colour * weight + behind * (1 - weight)
    rounded: Pixels = np.floor(mixed + 0.5).astype(pixels.dtype)
    return rounded


def parse_colour(text: str, *, where: str = "background") -> tuple[int, ...]:
    """Red, green and blue (0 to 255) of a colour's name, ``#rgb``, ``#rrggbb`` …

    Args:
        text: the colour.
        where: the option, for the error line.

    Raises:
        UserError: that is no colour.
    """
    levels: tuple[int, ...] = ()
    with suppress(ValueError):
        levels = ImageColor.getrgb(text)[:3]
    if levels and max(levels) <= 255:  # Pillow lets rgb(300,0,0) pass
        return levels
    raise UserError(
        f"{shown(text)} is not a colour; use a name or #rrggbb: white, #ffffff", where=where
    )


def _upright(pixels: Pixels, orientation: int) -> Pixels:
    """Undoes the camera's rotation: EXIF 2.32, tag 0x0112."""
    if orientation >= 5:
        pixels = pixels.transpose(1, 0, 2)
    flip_rows = orientation in (3, 4, 7, 8)
    flip_columns = orientation in (2, 3, 6, 7)
    pixels = pixels[:: -1 if flip_rows else 1, :: -1 if flip_columns else 1]
    upright: Pixels = np.ascontiguousarray(pixels)
    return upright


def _profile_name(profile: bytes | None) -> str | None:
    """The profile's description; None for sRGB."""
    if not profile:
        return None
    try:
        text = ImageCms.getProfileDescription(ImageCms.ImageCmsProfile(io.BytesIO(profile))).strip()
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return "unreadable profile"
    return None if "srgb" in text.lower() else shown(text) or "unnamed profile"
