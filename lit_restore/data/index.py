"""What a shard holds and where: sample keys and the byte ranges of their fields.

Built from a scan of the tar's headers and kept beside the shard, so that later runs start at once.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from lit_restore.data import side_car
from lit_restore.data.entries import Entries, Entry, Span
from lit_restore.errors import UserError
from lit_restore.io import archive, fs

_IMAGES = ("jpg", "jpeg", "png", "webp")
_PICTURES = ("image", "degraded", "restored")

FIELDS = (*_PICTURES, "label", "array")
"""What a sample can hold. `image.jpg` and plain `jpg` are the image."""


@dataclass(frozen=True)
class ShardIndex:
    """The samples of one shard, in the order they are stored."""

    path: Path
    entries: Entries
    """Compact: some twenty bytes a sample and its key."""
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

    `jpg`, `image.png` → image; `degraded.webp` → degraded; `restored.png` → restored;
    `cls` → label; `npy` → array.
    """
    parts = extension.lower().split(".")
    kind = parts[-1]
    if kind in _IMAGES:
        name = parts[-2] if len(parts) > 1 else "image"
        return name if name in _PICTURES else None
    return {"cls": "label", "npy": "array"}.get(kind)


def read_index(path: Path) -> ShardIndex:
    """The index of one shard: from its side-car where that is fresh, else from a header scan.

    Raises:
        UserError: the shard is missing, or is no tar of the kind we read.
    """
    stamp = fs.stamp(path)
    entries = side_car.load(path, stamp)
    if entries is None:
        entries = _scan(path)
        side_car.store(path, entries, stamp)
    return ShardIndex(path, entries, stamp[0])


def _scan(path: Path) -> Entries:
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
        kinds = "images are jpg, png or webp members, arrays npy"
        raise UserError(f"holds no sample ({kinds})", where=path)
    return Entries.of(entries.values())
