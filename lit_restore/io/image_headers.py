"""What a picture's first bytes say about it, read before any decoder sees them.

Decoders allocate what a header states (480 KB can become 169 megapixels), so the header is parsed
here, in Python, and checked against the limit. Formats: JPEG (ITU-T T.81 B.2), PNG (ISO/IEC
15948, 11.2.1) and WebP (RFC 9649); SVG, GIF, TIFF and everything else is named and refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lit_restore.errors import UserError
from lit_restore.io.wording import shown

PIXEL_LIMIT = 50 * 1000**2
"""Largest picture that is read, in pixels."""

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_CHANNELS = {0: 1, 2: 3, 3: 3, 4: 2, 6: 4}
_SOF = frozenset({0xC0, 0xC1, 0xC2, 0xC9, 0xCA})
_SOF_UNREADABLE = frozenset({0xC3, 0xC5, 0xC6, 0xC7, 0xCB, 0xCD, 0xCE, 0xCF})
_NO_LENGTH = frozenset({0x01, *range(0xD0, 0xD9)})

_OTHERS = (
    (b"GIF8", "GIF"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),
    (b"BM", "BMP"),
    (b"%PDF", "PDF"),
    (b"%!PS", "EPS"),
    (b"PK\x03\x04", "zip archive"),
    (b"\x93NUMPY", "npy array"),
)


@dataclass(frozen=True, slots=True)
class ImageHeader:
    """What a picture says about itself."""

    format: Literal["JPEG", "PNG", "WEBP"]
    width: int
    height: int
    bits: int
    """Bits per sample: 8 in most, 1, 2, 4 or 16 in some PNG, 12 in rare JPEG."""
    channels: int
    """Samples per pixel, alpha included; 3 for a palette."""


class _TruncatedError(Exception):
    """The bytes end before the header does."""


def sniff(data: bytes, *, name: str) -> ImageHeader:
    """The header of a JPEG, PNG or WebP picture; nothing is decoded.

    Args:
        data: the file, or at least its beginning up to the picture's size.
        name: file or member, named in the error line.

    Raises:
        UserError: another format, a damaged or cut header, or above 50 megapixels.
    """
    try:
        header = _parse(data)
    except (_TruncatedError, IndexError):
        raise unreadable("truncated" if data else "empty file", name) from None
    if header is None:
        raise unreadable(_what(data), name)
    check_size(header.width, header.height, name)
    return header


def check_size(width: int, height: int, name: str) -> None:
    """Refuse a picture without pixels or above `PIXEL_LIMIT`."""
    if width < 1 or height < 1:
        raise unreadable(f"{width}x{height}", name)
    if width * height > PIXEL_LIMIT:
        limit = PIXEL_LIMIT // 1000**2
        raise UserError(f"{width}x{height} is above {limit} megapixels", where=name)


def unreadable(reason: str, name: str) -> UserError:
    """The one line for everything that is no picture."""
    return UserError(f"not a readable JPEG, PNG or WebP ({reason})", where=name)


def _parse(data: bytes) -> ImageHeader | None:
    if data.startswith(b"\xff\xd8\xff"):
        return _jpeg(data)
    if data.startswith(_PNG):
        return _png(data)
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return _webp(data)
    cut = any(len(data) < len(m) and m.startswith(data) for m in (_PNG, b"\xff\xd8\xff"))
    if cut:
        raise _TruncatedError
    return None


def _jpeg(data: bytes) -> ImageHeader | None:
    """Walks the marker segments to the frame header (SOF)."""
    at = 2
    while True:
        if data[at] != 0xFF:
            return None
        while data[at] == 0xFF:
            at += 1
        marker = data[at]
        at += 1
        if marker in _NO_LENGTH:
            continue
        if marker in (0xD9, 0xDA) or marker in _SOF_UNREADABLE:
            return None  # pixels before any frame header, or a lossless frame
        length = _big(data, at, 2)
        if marker in _SOF:
            if length < 11:
                return None
            height, width = _big(data, at + 3, 2), _big(data, at + 5, 2)
            return ImageHeader("JPEG", width, height, data[at + 2], data[at + 7])
        if length < 2:
            return None
        at += length


def _png(data: bytes) -> ImageHeader | None:
    if len(data) < 33:
        raise _TruncatedError
    bits, colour = data[24], data[25]
    if data[8:16] != b"\0\0\0\rIHDR" or colour not in _PNG_CHANNELS or bits not in (1, 2, 4, 8, 16):
        return None
    return ImageHeader("PNG", _big(data, 16, 4), _big(data, 20, 4), bits, _PNG_CHANNELS[colour])


def _webp(data: bytes) -> ImageHeader | None:
    if len(data) < 21:
        raise _TruncatedError
    kind = data[12:16]
    if kind == b"VP8X":
        width, height = 1 + _little(data, 24, 3), 1 + _little(data, 27, 3)
        return ImageHeader("WEBP", width, height, 8, 4 if data[20] & 0x10 else 3)
    if kind == b"VP8 " and data[23:26] == b"\x9d\x01\x2a":
        width, height = _little(data, 26, 2) & 0x3FFF, _little(data, 28, 2) & 0x3FFF
        return ImageHeader("WEBP", width, height, 8, 3)
    if kind == b"VP8L" and data[20] == 0x2F:
        bits = _little(data, 21, 4)
        alpha = 4 if bits >> 28 & 1 else 3
        return ImageHeader("WEBP", 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF), 8, alpha)
    return None


def _big(data: bytes, at: int, size: int) -> int:
    return _number(data, at, size, "big")


def _little(data: bytes, at: int, size: int) -> int:
    return _number(data, at, size, "little")


def _number(data: bytes, at: int, size: int, order: Literal["big", "little"]) -> int:
    if at + size > len(data):
        raise _TruncatedError
    return int.from_bytes(data[at : at + size], order)


def _what(data: bytes) -> str:
    """A guess at what `data` is, in words."""
    if data[:3] == b"\xff\xd8\xff" or data[:8] == _PNG or data[8:12] == b"WEBP":
        return "damaged header"
    for magic, kind in _OTHERS:
        if data.startswith(magic):
            return kind
    if data[4:8] == b"ftyp":
        return f"{shown(data[8:12].decode('latin-1'))} file"
    head = data[:1024].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if b"<svg" in head:
        return "SVG"
    if head.startswith((b"<html", b"<!doc")):
        return "HTML page"
    try:
        head.decode()
    except UnicodeDecodeError as error:
        if error.end < len(head) - 3:
            return "unknown format"
    return "text" if b"\0" not in head else "unknown format"
