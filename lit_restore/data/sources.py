"""What shards are made of: folders of pictures, pairs, classes, an archive, or a seed.

Each source is listed before anything is read or written, so that what cannot be packed (unpaired
pictures, formats that are not read, two files of one key) is refused at once.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from lit_restore.data.dead_leaves import VERSION
from lit_restore.errors import UserError
from lit_restore.io import archive, fs
from lit_restore.io.wording import shown

READ = (".jpg", ".jpeg", ".png", ".webp")
_NOT_READ = re.compile(
    r"\.(avif|bmp|cr2|dng|exr|gif|hdr|hei[cf]|jp2|jxl|nef|p[bgp]m|raw|tga|tiff?)$", re.IGNORECASE
)
_DEEPEST = 32
_LONGEST_KEY = 1000
_LISTED = 10


@dataclass(frozen=True, slots=True)
class Stored:
    """An encoded picture: a file, or a member of an archive."""

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

    @property
    def where(self) -> str:
        """The picture as an error line names it."""
        return str(self.path) if self.offset == 0 else f"{self.path}: {shown(self.name)}"

    def read(self) -> bytes:
        """Its bytes; `UserError` where the file is gone or cut."""
        with fs.open_read(self.path) as file:
            return fs.pread(file, self.size, self.offset)


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
    """One sample to be packed."""

    key: str
    image: Stored | Drawn
    degraded: Stored | None = None
    label: int | None = None

    @property
    def pictures(self) -> list[Stored]:
        """What of it is read from the disk."""
        return [part for part in (self.image, self.degraded) if isinstance(part, Stored)]


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
        degraded = ["degraded"] if first.degraded is not None else []
        return (*degraded, "image", *(["label"] if self.classes else []))

    def digest(self) -> str:
        """sha256 over keys, names, sizes and labels: equal for copies of the same files."""
        state = hashlib.sha256(json.dumps([VERSION, self.classes]).encode())
        for item in self.items:
            drawn = item.image if isinstance(item.image, Drawn) else None
            row: list[object] = [item.key, item.label]
            row += [drawn.seed, drawn.index, drawn.size] if drawn else []
            row += [[part.name, part.offset, part.size] for part in item.pictures]
            state.update(json.dumps(row).encode())
        return state.hexdigest()

    def stamp(self) -> str:
        """sha256 over the times of the last change: a file edited meanwhile shows."""
        state = hashlib.sha256()
        for item in self.items:
            state.update(json.dumps([part.stamp for part in item.pictures]).encode())
        return state.hexdigest()

    def shuffled(self) -> Collection:
        """In the order of the keys' hashes: classes and scenes are spread over the shards."""
        order = sorted(self.items, key=lambda item: hashlib.sha256(item.key.encode()).digest())
        return replace(self, items=order)


def folder_of_images(folder: Path) -> Collection:
    """All JPEG, PNG and WebP files below a folder.

    Raises:
        UserError: none there, formats that are not read, or two files of one key.
    """
    items = [Item(_key(found.name), found) for found in _images(folder)]
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
    _unique([Item(item.key, part) for item in items for part in item.pictures[1:]], str(degraded))
    return Collection(f"{degraded} + {clean}", _unique(items, str(clean)))


def class_folders(folder: Path) -> Collection:
    """Pictures in one folder a class; classes are numbered in the order of their names.

    Raises:
        UserError: as `folder_of_images`, or pictures outside class folders.
    """
    classes = tuple(path.name for path in fs.list_dir(folder) if fs.is_dir(path) and _seen(path))
    number = {name: label for label, name in enumerate(classes)}
    images = _images(folder)
    outside = [found.name for found in images if "/" not in found.name]
    if outside:
        raise UserError(f"pictures in no class folder: {_some(outside)}", where=folder)
    items = [
        Item(_key(found.name), found, label=number[found.name.split("/")[0]]) for found in images
    ]
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
    files = dict(_walk(folder, "", 0))
    _refuse_formats(list(files), folder)
    names = [name for name in files if _suffix(name) in READ]
    if not names:
        raise UserError("no JPEG, PNG or WebP pictures below this folder", where=folder)
    found = [(name, files[name], fs.stamp(files[name])) for name in sorted(names)]
    return [Stored(name, path, 0, size, changed) for name, path, (size, changed) in found]


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
            names = " and ".join(shown(i.pictures[0].name) for i in (other, item))
            raise UserError(f"{names} have the same key {shown(item.key)}; rename one", where=where)
        if len(item.key.encode()) > _LONGEST_KEY:
            raise UserError(f"name above {_LONGEST_KEY} bytes: {shown(item.key)}", where=where)
    return items


def _some(names: Sequence[str]) -> str:
    """The first ten names, and how many more."""
    text = ", ".join(shown(name) for name in names[:_LISTED])
    more = len(names) - _LISTED
    return f"{text} and {more} more" if more > 0 else text
