"""What a shard holds and where: sample keys and the byte ranges of their fields.

Built from a scan of the tar's headers and kept beside the shard, so that later runs start at once.
"""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import dataclass
from pathlib import Path

from lit_restore.errors import UserError
from lit_restore.io import archive, fs

_log = logging.getLogger(__name__)

_IMAGES = ("jpg", "jpeg", "png", "webp")
_FORMAT = 1
_MAX_SIDE_CAR = 256 << 20

FIELDS = ("image", "degraded", "label", "array")
"""What a sample can hold. `image.jpg` and plain `jpg` are the image."""


@dataclass(frozen=True)
class Span:
    """A byte range of a shard."""

    offset: int
    size: int
    kind: str
    """The member's last extension, lower case: jpg, png, webp, cls, npy."""


@dataclass(frozen=True)
class Entry:
    """One sample of a shard."""

    key: str
    fields: dict[str, Span]


@dataclass(frozen=True)
class ShardIndex:
    """The samples of one shard, in the order they are stored."""

    path: Path
    entries: tuple[Entry, ...]
    size: int
    """Bytes of the shard."""

    @property
    def digest(self) -> str:
        """sha256 over names and byte ranges: identifies a shard without reading all of it."""
        state = hashlib.sha256()
        for entry in self.entries:
            state.update(f"{entry.key}\0".encode())
            for name, span in sorted(entry.fields.items()):
                state.update(f"{name}:{span.offset}:{span.size}\0".encode())
        return state.hexdigest()


def field_of(extension: str) -> str | None:
    """The field that a member's extension (all after the first dot) stands for, or None.

    `jpg`, `image.png` → image; `degraded.webp` → degraded; `cls` → label; `npy` → array.
    """
    parts = extension.lower().split(".")
    kind = parts[-1]
    if kind in _IMAGES:
        name = parts[-2] if len(parts) > 1 else "image"
        return name if name in ("image", "degraded") else None
    return {"cls": "label", "npy": "array"}.get(kind)


def read_index(path: Path) -> ShardIndex:
    """The index of one shard: from its side-car where that is fresh, else from a header scan.

    Raises:
        UserError: the shard is missing, or is no tar of the kind we read.
    """
    stamp = _stamp(path)
    cached = _load(path, stamp)
    if cached is not None:
        return cached
    index = ShardIndex(path, _entries(path), stamp["size"])
    _store(index, stamp)
    return index


def _entries(path: Path) -> tuple[Entry, ...]:
    entries: dict[str, Entry] = {}
    for member in archive.scan_tar(path):
        folder, _, name = member.name.rpartition("/")
        stem, _, extension = name.partition(".")
        field = field_of(extension)
        if field is None:
            continue
        key = f"{folder}/{stem}" if folder else stem
        entry = entries.setdefault(key, Entry(key, {}))
        if field in entry.fields:
            raise UserError(f'sample "{key}" has two fields "{field}"', where=path)
        kind = extension.lower().rpartition(".")[2]
        entry.fields[field] = Span(member.offset, member.size, kind)
    if not entries:
        raise UserError("holds no sample (images are jpg, png or webp members)", where=path)
    return tuple(entries.values())


def _stamp(path: Path) -> dict[str, int]:
    size, mtime_ns = fs.stamp(path)
    return {"format": _FORMAT, "size": size, "mtime_ns": mtime_ns}


def _side_car(path: Path) -> Path:
    return path.parent / ".index" / f"{path.name}.json"


def _load(path: Path, stamp: dict[str, int]) -> ShardIndex | None:
    side_car = _side_car(path)
    if not fs.exists(side_car):
        return None
    try:
        stored = json.loads(fs.read_bytes(side_car, limit=_MAX_SIDE_CAR))
        if stored["stamp"] != stamp:
            return None
        entries = tuple(
            Entry(key, {name: Span(*span) for name, span in fields.items()})
            for key, fields in stored["entries"]
        )
    except (UserError, ValueError, KeyError, TypeError):
        return None  # a side-car is only a copy: a bad one is made anew
    return ShardIndex(path, entries, stamp["size"])


def _store(index: ShardIndex, stamp: dict[str, int]) -> None:
    entries = [
        [entry.key, {name: [s.offset, s.size, s.kind] for name, s in entry.fields.items()}]
        for entry in index.entries
    ]
    text = json.dumps({"stamp": stamp, "entries": entries}, separators=(",", ":"))
    try:
        fs.make_dir(_side_car(index.path).parent)
        fs.write_atomic(_side_car(index.path), text)
    except OSError as error:
        _log.info("no index is kept beside %s: %s", index.path, error.strerror)
