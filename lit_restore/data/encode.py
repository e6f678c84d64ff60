"""One sample on its way into a shard: checked, cut, resized or padded, encoded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from lit_restore.data.dead_leaves import procedural_image
from lit_restore.data.decode import decode_image
from lit_restore.data.pixels import padded, row_pixels, square_pixels
from lit_restore.data.sources import Drawn, Item, Stored
from lit_restore.errors import UserError
from lit_restore.io import archive, arrays, images
from lit_restore.io.wording import human_size

Pixels = npt.NDArray[np.uint8]
Encode = Literal["keep", "jpeg95", "webp", "png"]
ENCODES: tuple[Encode, ...] = get_args(Encode)
_EXTENSION = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """How pictures are stored."""

    encode: Encode = "keep"
    """keep: the files' own bytes (cut, resized or padded: lossless WebP; rows of an array: PNG;
    procedural: jpeg95). jpeg95: JPEG of quality 95, colour not subsampled. webp, png: lossless."""
    tile: int | None = None
    """Cut into squares of this side, whole ones only; none: whole pictures."""
    resize: int | None = None
    """Side of the square that a picture's middle is scaled to, as `adm_square` does it."""
    pad: int | None = None
    """Side of the square of zeros (black) in whose middle the picture is put."""

    @property
    def shaping(self) -> list[str]:
        """What is done to the pictures' size, of tile, resize, pad; one at most is allowed."""
        sides = {"tile": self.tile, "resize": self.resize, "pad": self.pad}
        return [name for name, side in sides.items() if side is not None]

    def described(self) -> dict[str, str | int | None]:
        """What the bytes of a shard depend on."""
        found: dict[str, str | int | None] = {"encode": self.encode, "tile": self.tile}
        # Left out where they are not used, so that older folders keep the digest of their plan.
        later = {"resize": self.resize, "pad": self.pad}
        return found | {name: side for name, side in later.items() if side is not None}


@dataclass(frozen=True, slots=True)
class Packed:
    """A sample as it stands in a shard."""

    key: str
    fields: dict[str, bytes]
    """Extension → data."""


@dataclass(frozen=True, slots=True)
class Bad:
    """A sample that cannot be packed."""

    where: str
    reason: str


def pack_items(items: Sequence[Item], encoding: Encoding) -> list[list[Packed] | Bad]:
    """Read, check and encode samples; each becomes several where it is cut into tiles.

    Every picture is decoded as training will decode it, so that no damaged one gets in.
    """
    return [_pack(item, encoding) for item in items]


def _pack(item: Item, encoding: Encoding) -> list[Packed] | Bad:
    try:
        more = {} if item.label is None else {"cls": str(item.label).encode()}
        if item.array is not None:
            more["npy"] = _array(item.array, item.array_name)
        parts = [Packed(key, fields | more) for key, fields in _parts(item, encoding)]
    except UserError as error:
        return Bad(error.where or item.where, error.message)
    return parts or Bad(item.where, f"smaller than a tile of {encoding.tile} pixels")


def _array(stored: Stored, name: str | None) -> bytes:
    """A `.npy` as training reads it."""
    _check_size(stored)
    data = stored.read()
    if stored.path.suffix.lower() == ".npz" and not stored.head:
        array = arrays.parse_npz(data, name, name=stored.where)
    else:
        array = arrays.parse_numbers(data, name=stored.where)
    return arrays.npy_bytes(array)


def _parts(item: Item, encoding: Encoding) -> Iterator[tuple[str, dict[str, bytes]]]:
    if item.image is None:
        yield item.key, {}
        return
    image, kept = _read(item.image, encoding)
    if item.degraded is None:
        for suffix, (tile,) in _tiles([image], [1], encoding.tile):
            extension, data = _encoded(tile, kept, encoding)
            yield item.key + suffix, {extension: data}
        return
    degraded, kept_degraded = _read(item.degraded, encoding)
    scale = _scale(image, degraded, item.degraded.where)
    for suffix, (clean, low) in _tiles([image, degraded], [1, scale], encoding.tile):
        extension, data = _encoded(clean, kept, encoding)
        other, other_data = _encoded(low, kept_degraded, encoding)
        yield item.key + suffix, {f"image.{extension}": data, f"degraded.{other}": other_data}


def _read(picture: Stored | Drawn, encoding: Encoding) -> tuple[Pixels, bytes | Encode]:
    """Pixels, resized or padded, and what "keep" keeps: the file's own bytes, or an encoding."""
    if isinstance(picture, Drawn):
        size = (picture.size, picture.size)
        return _shaped(procedural_image(picture.seed, picture.index, size=size), encoding), "jpeg95"
    _check_size(picture)
    data = picture.read()
    if picture.head:
        return _shaped(row_pixels(data, name=picture.where), encoding), "png"
    pixels = _shaped(decode_image(data, name=picture.where), encoding)
    return pixels, "webp" if encoding.shaping else data


def _shaped(pixels: Pixels, encoding: Encoding) -> Pixels:
    """The whole picture, resized or padded."""
    if encoding.resize is not None:
        return square_pixels(pixels, encoding.resize)
    return pixels if encoding.pad is None else padded(pixels, encoding.pad)


def _check_size(stored: Stored) -> None:
    if stored.size > archive.MEMBER_LIMIT:
        limit = human_size(archive.MEMBER_LIMIT)
        raise UserError(f"{human_size(stored.size)} is above {limit}", where=stored.where)


def _encoded(pixels: Pixels, kept: bytes | Encode, encoding: Encoding) -> tuple[str, bytes]:
    """(extension, data)."""
    how = kept if encoding.encode == "keep" else encoding.encode
    if isinstance(how, bytes):
        return _EXTENSION[images.sniff(how, name="").format], how
    if how == "png":
        return "png", images.png_bytes(pixels)
    if how == "webp":
        return "webp", images.webp_bytes(pixels)
    return "jpg", images.jpeg_bytes(pixels, 95)


def _scale(clean: Pixels, degraded: Pixels, where: str) -> int:
    """How many pixels of the clean picture one of the degraded picture stands for."""
    scale = int(clean.shape[0] // degraded.shape[0])
    if scale < 1 or degraded.shape[:2] != (clean.shape[0] // scale, clean.shape[1] // scale):
        sizes = [f"{pixels.shape[1]}x{pixels.shape[0]}" for pixels in (degraded, clean)]
        raise UserError(f"is {sizes[0]}, its clean picture {sizes[1]}: no whole scale", where=where)
    return scale


def _tiles(
    pictures: Sequence[Pixels], scales: Sequence[int], tile: int | None
) -> Iterator[tuple[str, list[Pixels]]]:
    """Suffix of the key and the same square of each picture; the pictures whole without `tile`."""
    if tile is None:
        yield "", list(pictures)
        return
    if tile % max(scales):
        raise UserError(f"tile {tile} is no multiple of the scale {max(scales)}", where="tile")
    height, width = pictures[0].shape[:2]
    for row in range(height // tile):
        for column in range(width // tile):
            cut = []
            for pixels, scale in zip(pictures, scales, strict=True):
                side = tile // scale
                rows = slice(row * side, (row + 1) * side)
                columns = slice(column * side, (column + 1) * side)
                cut.append(np.ascontiguousarray(pixels[rows, columns]))
            yield f"-r{row}c{column}", cut
