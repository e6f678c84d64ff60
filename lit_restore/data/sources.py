"""What shards are made of: folders of pictures and arrays, pairs, classes, an archive, or a seed.

Each source is listed before anything is read or written, so that what cannot be packed (unpaired
pictures, formats that are not read, two files of one key) is refused at once.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from lit_restore.data.dead_leaves import VERSION
from lit_restore.errors import UserError
from lit_restore.io import archive, fs
from lit_restore.io.wording import shown

READ = (".jpg", ".jpeg", ".png", ".webp")
ARRAYS = (".npy", ".npz")
_NOT_READ = re.compile(
    r"\.(avif|bmp|cr2|dng|exr|gif|hdr|hei[cf]|jp2|jxl|nef|p[bgp]m|raw|tga|tiff?)$", re.IGNORECASE
)
_DEEPEST = 32
_LONGEST_KEY = 1000
_LISTED = 10


@dataclass(frozen=True, slots=True)
class Stored:
    """An encoded picture or an array: a file, or a part of one."""

    name: str
    """Its path below the source, "/" between folders."""
    path: Path
    """The file, or the archive."""
    offset: int
    """Byte of `path` at which it begins."""
    size: int
    """Bytes."""
    stamp: int
    """Time of the last change of `path`, ns."""
    head: bytes = b""
    """Put before the bytes of the file: what makes a row of an array a `.npy` file. The pixels of
    a picture where the array holds pictures (`lit_restore.data.pixels.row_pixels`)."""
    held: bytes | None = None
    """The bytes themselves, where the file holds them compressed."""

    @property
    def where(self) -> str:
        """The picture as an error line names it."""
        return str(self.path) if self.offset == 0 else f"{self.path}: {shown(self.name)}"

    def read(self) -> bytes:
        """Its bytes; `UserError` where the file is gone or cut."""
        if self.held is not None:
            return self.head + self.held
        with fs.open_read(self.path) as file:
            data = fs.pread(file, self.size, self.offset)
        return self.head + data if self.head else data


@dataclass(frozen=True, slots=True)
class Drawn:
    """A procedural picture, `size` by `size` pixels."""

    seed: int
    index: int
    size: int

    @property
    def where(self) -> str:
        """The picture as an error line names it."""
        return f"procedural image {self.index} of seed {self.seed}"


@dataclass(frozen=True, slots=True)
class Item:
    """One sample to be packed: a picture, an array, or both."""

    key: str
    image: Stored | Drawn | None
    degraded: Stored | None = None
    label: int | None = None
    array: Stored | None = None
    array_name: str | None = None
    """Which array of an `.npz`."""

    @property
    def parts(self) -> list[Stored]:
        """What of it is read from the disk."""
        parts = (self.image, self.degraded, self.array)
        return [part for part in parts if isinstance(part, Stored)]

    @property
    def where(self) -> str:
        """The sample as an error line names it."""
        named = self.image or self.array
        assert named is not None, self.key
        return named.where


@dataclass(frozen=True)
class Collection:
    """All samples to be packed, in the order of packing."""

    where: str
    """What the user named."""
    items: Sequence[Item]
    classes: tuple[str, ...] = ()

    @property
    def fields(self) -> tuple[str, ...]:
        """What every sample has, sorted."""
        first = self.items[0]
        held = {
            "array": first.array is not None,
            "degraded": first.degraded is not None,
            "image": first.image is not None,
            "label": bool(self.classes) or first.label is not None,
        }
        return tuple(name for name, has in held.items() if has)

    def digest(self) -> str:
        """sha256 over keys, names, sizes and labels: equal for copies of the same files."""
        state = hashlib.sha256(json.dumps([VERSION, self.classes]).encode())
        for item in self.items:
            drawn = item.image if isinstance(item.image, Drawn) else None
            row: list[object] = [item.key, item.label]
            row += [drawn.seed, drawn.index, drawn.size] if drawn else []
            row += [[part.name, part.offset, part.size] for part in item.parts]
            if item.array is not None:
                row += [item.array.head.hex(), item.array_name]
            elif isinstance(item.image, Stored) and item.image.head:
                row += [item.image.head.hex()]
            state.update(json.dumps(row).encode())
        return state.hexdigest()

    def stamp(self) -> str:
        """sha256 over the times of the last change: a file edited meanwhile shows."""
        state = hashlib.sha256()
        for item in self.items:
            state.update(json.dumps([part.stamp for part in item.parts]).encode())
        return state.hexdigest()

    def shuffled(self) -> Collection:
        """In the order of the keys' hashes: classes and scenes are spread over the shards."""
        order = sorted(self.items, key=lambda item: hashlib.sha256(item.key.encode()).digest())
        return replace(self, items=order)


def folder_of_images(folder: Path, *, array_name: str | None = None) -> Collection:
    """All JPEG, PNG and WebP files below a folder, the arrays beside them, or arrays alone.

    An array belongs to the picture of its name: `x.png` and `x.npy`, or `x.npz`.

    Args:
        folder: is searched with all folders in it.
        array_name: which array of each `.npz`; may be left out where there is one only.

    Raises:
        UserError: none there, formats that are not read, two files of one key, or arrays beside
            some of the pictures only.
    """
    items = _samples(folder, array_name)
    return Collection(str(folder), _unique(items, str(folder)))


def paired_folders(degraded: Path, clean: Path) -> Collection:
    """Pairs of files with equal paths below the two folders, extensions aside.

    Raises:
        UserError: as `folder_of_images`, or files without a partner.
    """
    sides = [
        {_stem(found.name): found for found in reversed(_images(side))}
        for side in (degraded, clean)
    ]
    alone = [sorted(set(a) - set(b)) for a, b in (sides, sides[::-1])]
    if any(alone):
        told = "; ".join(
            f"only in {folder}: {_some(stems)}"
            for folder, stems in zip((degraded, clean), alone, strict=True)
            if stems
        )
        raise UserError(f"pictures without a partner: {told}", where=degraded)
    items = [Item(_key(sides[1][stem].name), sides[1][stem], sides[0][stem]) for stem in sides[1]]
    _unique([Item(item.key, part) for item in items for part in item.parts[1:]], str(degraded))
    return Collection(f"{degraded} + {clean}", _unique(items, str(clean)))


def class_folders(folder: Path, *, array_name: str | None = None) -> Collection:
    """Samples in one folder a class; classes are numbered in the order of their names.

    Raises:
        UserError: as `folder_of_images`, or pictures outside class folders.
    """
    classes = tuple(path.name for path in fs.list_dir(folder) if fs.is_dir(path) and _seen(path))
    number = {name: label for label, name in enumerate(classes)}
    found = [(item.parts[0].name, item) for item in _samples(folder, array_name)]
    outside = [name for name, _ in found if "/" not in name]
    if outside:
        raise UserError(f"in no class folder: {_some(outside)}", where=folder)
    items = [replace(item, label=number[name.split("/")[0]]) for name, item in found]
    return Collection(str(folder), _unique(items, str(folder)), classes)


def archive_of_images(path: Path) -> Collection:
    """All JPEG, PNG and WebP members of an uncompressed tar archive.

    Raises:
        UserError: the archive is refused or holds none, or two members have one key.
    """
    stamp = fs.stamp(path)[1]
    members = archive.scan_tar(path, samples=False)
    _refuse_formats([member.name for member in members], path)
    items = [
        Item(_key(member.name), Stored(member.name, path, member.offset, member.size, stamp))
        for member in members
        if _suffix(member.name) in READ
    ]
    if not items:
        raise UserError("no JPEG, PNG or WebP pictures in this archive", where=path)
    return Collection(str(path), _unique(items, str(path)))


def procedural_images(count: int, *, size: int, seed: int) -> Collection:
    """`count` pictures of `lit_restore.data.dead_leaves`.

    Args:
        count: number of pictures.
        size: side of the square pictures, pixels.
        seed: of the set.

    Raises:
        UserError: nothing to draw, or a size that is not drawn.
    """
    if count < 1:
        raise UserError(f"{count} procedural images; give 1 or more", where="count")
    if not 16 <= size <= 4096:
        raise UserError(f"{size} is not within 16 to 4096 pixels", where="size")
    items = [Item(f"{index:08d}", Drawn(seed, index, size)) for index in range(count)]
    return Collection(f"{count} procedural images", items)


def _images(folder: Path) -> list[Stored]:
    pictures = [item.image for item in _samples(folder, None, arrays=False)]
    return [picture for picture in pictures if isinstance(picture, Stored)]


def _samples(folder: Path, array_name: str | None, *, arrays: bool = True) -> list[Item]:
    """What lies below a folder, in the order of the names."""
    files = dict(_walk(folder, "", 0))
    _refuse_formats(list(files), folder)
    pictures = [name for name in sorted(files) if _suffix(name) in READ]
    found = [name for name in sorted(files) if _suffix(name) in ARRAYS] if arrays else []
    if not pictures and not found:
        raise UserError(
            "no JPEG, PNG or WebP pictures, nor arrays, below this folder", where=folder
        )
    if not pictures:
        return [
            Item(_key(name), None, array=_file(name, files), array_name=_take(name, array_name))
            for name in found
        ]
    if not found:
        return [Item(_key(name), _file(name, files)) for name in pictures]
    beside = {_stem(name): name for name in found}
    bare = [name for name in pictures if _stem(name) not in beside]
    stems = {_stem(name) for name in pictures}
    stray = [name for name in found if _stem(name) not in stems or beside[_stem(name)] != name]
    if bare or stray:
        told = [f"without an array: {_some(bare)}"] * bool(bare)
        told += [f"without a picture of its own: {_some(stray)}"] * bool(stray)
        raise UserError(f"pictures and arrays do not match; {'; '.join(told)}", where=folder)
    return [
        Item(
            _key(name),
            _file(name, files),
            array=_file(beside[_stem(name)], files),
            array_name=_take(beside[_stem(name)], array_name),
        )
        for name in pictures
    ]


def _file(name: str, files: Mapping[str, Path]) -> Stored:
    size, changed = fs.stamp(files[name])
    return Stored(name, files[name], 0, size, changed)


def _take(name: str, array_name: str | None) -> str | None:
    return array_name if _suffix(name) == ".npz" else None


def _walk(folder: Path, prefix: str, depth: int) -> Iterable[tuple[str, Path]]:
    if depth > _DEEPEST:
        raise UserError(f"folders nested deeper than {_DEEPEST} (a link to itself?)", where=folder)
    for path in fs.list_dir(folder):
        if not _seen(path):
            continue
        if fs.is_dir(path):
            yield from _walk(path, f"{prefix}{path.name}/", depth + 1)
        else:
            yield f"{prefix}{path.name}", path


def _seen(path: Path) -> bool:
    return not path.name.startswith(".") and path.name != "__MACOSX"


def _refuse_formats(names: Sequence[str], where: Path) -> None:
    refused = [name for name in names if _NOT_READ.search(name)]
    if refused:
        raise UserError(
            f"only JPEG, PNG and WebP are packed, not {_some(refused)}; convert to PNG, or remove",
            where=where,
        )


def _suffix(name: str) -> str:
    return PurePosixPath(name).suffix.lower()


def _stem(name: str) -> str:
    return str(PurePosixPath(name).with_suffix(""))


def _key(name: str) -> str:
    """A path as one safe word: "a/b c.jpg" → "a__b_c"; dots would end a webdataset key."""
    text = unicodedata.normalize("NFC", _stem(name)).replace("/", "__")
    return re.sub(r"[^\w-]", "_", text)


def _unique(items: list[Item], where: str) -> list[Item]:
    """The items, if their keys are; names both files otherwise."""
    first: dict[str, Item] = {}
    for item in items:
        other = first.setdefault(item.key, item)
        if other is not item:
            names = " and ".join(shown(i.parts[0].name) for i in (other, item))
            raise UserError(f"{names} have the same key {shown(item.key)}; rename one", where=where)
        if len(item.key.encode()) > _LONGEST_KEY:
            raise UserError(f"name above {_LONGEST_KEY} bytes: {shown(item.key)}", where=where)
    return items


def _some(names: Sequence[str]) -> str:
    """The first ten names, and how many more."""
    text = ", ".join(shown(name) for name in names[:_LISTED])
    more = len(names) - _LISTED
    return f"{text} and {more} more" if more > 0 else text
