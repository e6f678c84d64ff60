"""The samples of one shard as a few arrays: what millions of samples cost in memory.

A Python object a sample costs several hundred bytes, and forked workers copy its page as soon as
they look at it, because looking counts a reference. Arrays are only read, so all workers share
them; an `Entry` is made when a sample is asked for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
import numpy.typing as npt

KINDS = ("jpg", "jpeg", "png", "webp", "cls", "npy")
"""Extensions of members; their numbers stand in the side-car."""
ABSENT = 255
"""The kind of a field that a sample has not."""


@dataclass(frozen=True, slots=True)
class Span:
    """A byte range of a shard."""

    offset: int
    size: int
    kind: str
    """The member's last extension, lower case: one of `KINDS`."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One sample of a shard."""

    key: str
    fields: dict[str, Span]


@dataclass(frozen=True, slots=True)
class Column:
    """One field of all samples, (n,) each."""

    offsets: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.uint32]
    kinds: npt.NDArray[np.uint8]
    """Into `KINDS`, or `ABSENT`."""


class Entries(Sequence[Entry]):
    """The samples of a shard, in the order they are stored.

    17 bytes a sample with one field (offset 8, size 4, kind 1, end of the key 4), 13 more for each
    further field, and the key's own bytes.

    Args:
        keys: all keys in UTF-8, one after the other, (bytes,) uint8.
        ends: where each key ends in `keys`, (n,) uint32.
        columns: field → where it lies in each sample.
    """

    def __init__(
        self,
        keys: npt.NDArray[np.uint8],
        ends: npt.NDArray[np.uint32],
        columns: Mapping[str, Column],
    ) -> None:
        self.keys, self.ends, self.columns = keys, ends, dict(columns)

    @classmethod
    def of(cls, entries: Iterable[Entry]) -> Entries:
        """The same samples, compact. Members are below 4 GB each, and so are all keys together."""
        listed = list(entries)
        keys = [entry.key.encode() for entry in listed]
        names = sorted({name for entry in listed for name in entry.fields})
        return cls(
            np.frombuffer(b"".join(keys), np.uint8),
            np.cumsum([len(key) for key in keys]).astype(np.uint32),
            {name: _column([entry.fields.get(name) for entry in listed]) for name in names},
        )

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        parts = [(c.offsets, c.sizes, c.kinds) for c in self.columns.values()]
        return sum(array.nbytes for part in [(self.keys, self.ends), *parts] for array in part)

    def counts(self) -> dict[str, int]:
        """Field → samples that have it."""
        return {name: int((c.kinds != ABSENT).sum()) for name, c in self.columns.items()}

    def __len__(self) -> int:
        return len(self.ends)

    @overload
    def __getitem__(self, index: int) -> Entry: ...

    @overload
    def __getitem__(self, index: slice) -> list[Entry]: ...

    def __getitem__(self, index: int | slice) -> Entry | list[Entry]:
        if isinstance(index, slice):
            return [self[k] for k in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        fields = {}
        for name, column in self.columns.items():
            kind = int(column.kinds[index])
            if kind != ABSENT:
                span = Span(int(column.offsets[index]), int(column.sizes[index]), KINDS[kind])
                fields[name] = span
        return Entry(self.key(index), fields)

    def key(self, index: int) -> str:
        """The key of sample `index`, 0 or above."""
        begin = int(self.ends[index - 1]) if index else 0
        return self.keys[begin : int(self.ends[index])].tobytes().decode()


def _column(spans: Sequence[Span | None]) -> Column:
    return Column(
        np.array([0 if span is None else span.offset for span in spans], np.int64),
        np.array([0 if span is None else span.size for span in spans], np.uint32),
        np.array([ABSENT if span is None else KINDS.index(span.kind) for span in spans], np.uint8),
    )
