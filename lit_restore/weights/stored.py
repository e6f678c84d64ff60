"""A group of tensors in a checkpoint folder, whole or in pieces, read part by part.

```
network.safetensors                        one file: name → whole tensor
network-r0.safetensors … network-rN.…      name → the rank's piece; index.json says of which part
index.json   {"network": {name: {"shape", "dtype", "pieces": [{"file", "offset", "shape"}]}}}
```
Reading asks for boxes, so that a rank reads what it holds and no rank needs room for the whole.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_restore.errors import UserError
from lit_restore.io import fs, tensors
from lit_restore.io.wording import shown
from lit_restore.weights.pieces import Box, overlap, within

INDEX = "index.json"
_MAX_INDEX = 1 << 30


@dataclass(frozen=True)
class StoredPiece:
    """One file's part of a tensor."""

    file: Path
    box: Box


@dataclass(frozen=True)
class StoredTensor:
    """A tensor on disk."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    pieces: tuple[StoredPiece, ...]


class StoredGroup:
    """Read-only tensors of one group, by name; nothing is read before it is asked for.

    Args:
        entries: name → where its parts lie.
        prefix: what the names in the files begin with (``profile/``), not part of ours.
    """

    def __init__(self, entries: Mapping[str, StoredTensor], *, prefix: str = "") -> None:
        self.entries = dict(entries)
        self._prefix = prefix
        self._files: dict[Path, tensors.TensorFile] = {}

    def _load(self, file: Path, name: str) -> Tensor:
        if file not in self._files:
            self._files[file] = tensors.TensorFile(file)
        return self._files[file].read(self._prefix + name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def __contains__(self, name: object) -> bool:
        return name in self.entries

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of the whole tensor."""
        return self.entries[name].shape

    def read(self, name: str, box: Box | None = None) -> Tensor:
        """A box of a tensor (all of it by default), on the CPU.

        Raises:
            UserError: a file is damaged, or its pieces do not cover the box.
        """
        entry = self.entries[name]
        wanted = box or ((0,) * len(entry.shape), entry.shape)
        if len(entry.pieces) == 1 and entry.pieces[0].box == wanted:
            return self._load(entry.pieces[0].file, name)
        result = torch.empty(wanted[1], dtype=entry.dtype)
        missing = result.numel()
        for piece in entry.pieces:
            shared = overlap(piece.box, wanted)
            if shared is None:
                continue
            part = self._load(piece.file, name)
            if tuple(part.shape) != piece.box[1]:
                raise UserError(f"{shown(name)} is not of the indexed shape", where=piece.file)
            cut = part[within(shared, piece.box)]
            result[within(shared, wanted)] = cut
            missing -= cut.numel()
        if missing:
            where = entry.pieces[0].file.parent if entry.pieces else None
            raise UserError(f"parts of {shown(name)} are in no file", where=where)
        return result

    def whole(self) -> dict[str, Tensor]:
        """All tensors, whole."""
        return {name: self.read(name) for name in self}

    def below(self, prefix: str) -> StoredGroup:
        """The tensors whose names begin with `prefix`, under the rest of their names."""
        chosen = {
            name.removeprefix(prefix): entry
            for name, entry in self.entries.items()
            if name.startswith(prefix)
        }
        return StoredGroup(chosen, prefix=self._prefix + prefix)


def open_groups(folder: Path, *groups: str) -> list[StoredGroup]:
    """The tensors of some groups in a (verified) checkpoint folder, in that order.

    Raises:
        UserError: a file or the index is damaged.
    """
    if fs.exists(folder / INDEX):
        return _indexed(folder / INDEX, groups)
    return [_of_one_file(folder / f"{group}.safetensors") for group in groups]


def _of_one_file(path: Path) -> StoredGroup:
    return StoredGroup(
        {
            entry.name: StoredTensor(
                entry.shape,
                entry.dtype,
                (StoredPiece(path, ((0,) * len(entry.shape), entry.shape)),),
            )
            for entry in tensors.read_header(path).entries
        }
    )


def _indexed(path: Path, groups: Sequence[str]) -> list[StoredGroup]:
    try:
        content: dict[str, Any] = json.loads(fs.read_text(path, limit=_MAX_INDEX))
        return [StoredGroup(_entries(path.parent, content[group])) for group in groups]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UserError("is not the index of a checkpoint", where=path) from None


def _entries(folder: Path, content: Mapping[str, Any]) -> dict[str, StoredTensor]:
    return {
        str(name): StoredTensor(
            _axes(entry["shape"]),
            tensors.DTYPES[entry["dtype"]],
            tuple(_piece(folder, piece) for piece in entry["pieces"]),
        )
        for name, entry in content.items()
    }


def _piece(folder: Path, entry: Mapping[str, Any]) -> StoredPiece:
    name = entry["file"]
    if not isinstance(name, str) or Path(name).name != name:
        raise ValueError(name)
    return StoredPiece(folder / name, (_axes(entry["offset"]), _axes(entry["shape"])))


def _axes(value: object) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(type(n) is int and 0 <= n < 1 << 48 for n in value):
        raise ValueError(value)
    return tuple(value)
