"""An index kept beside its shard: `.index/NAME.idx`, so that later runs start at once.

One line of JSON (version, stamp of the shard, fields, counts, CRC-32 of the rest), padded to a
multiple of 8 bytes, then the arrays of `Entries` as they lie in memory on a little-endian machine:
for each field its offsets; the ends of the keys; for each field its sizes, then for each its kinds;
the keys. It is a copy of what the shard's headers say: whatever is wrong with it, it is made anew.
"""

from __future__ import annotations

import json
import logging
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lit_restore.data.entries import ABSENT, KINDS, Column, Entries
from lit_restore.errors import UserError
from lit_restore.io import archive, fs

_log = logging.getLogger(__name__)

_FORMAT = 2
_LIMIT = 1 << 30
_HEADER_LIMIT = 1 << 12
_FIELDS_LIMIT = 16


def side_car(path: Path) -> Path:
    """Where the index of a shard is kept."""
    return path.parent / ".index" / f"{path.name}.idx"


def load(path: Path, stamp: tuple[int, int]) -> Entries | None:
    """The kept index of a shard; None where there is none, or a stale or damaged one.

    Args:
        path: the shard.
        stamp: its `fs.stamp`, which the kept one must have.
    """
    kept = side_car(path)
    if not fs.exists(kept):
        return None
    try:
        return _parse(fs.read_bytes(kept, limit=_LIMIT), stamp)
    except (UserError, ValueError, KeyError, TypeError, RecursionError):
        return None


def store(path: Path, entries: Entries, stamp: tuple[int, int]) -> None:
    """Keep an index beside its shard, where that may be written; the old format's goes."""
    body = b"".join(_little(array).tobytes() for array in _arrays(entries))
    header = {
        "format": _FORMAT,
        "stamp": list(stamp),
        "samples": len(entries),
        "fields": list(entries.columns),
        "crc32": zlib.crc32(body),
    }
    line = json.dumps(header, separators=(",", ":")).encode()
    line += b" " * (-(len(line) + 1) % 8) + b"\n"
    try:
        fs.make_dir(side_car(path).parent)
        fs.write_atomic(side_car(path), line + body)
        fs.remove_file(path.parent / ".index" / f"{path.name}.json")
    except OSError as error:
        _log.info("no index is kept beside %s: %s", path, error.strerror)


def _arrays(entries: Entries) -> list[npt.NDArray[np.generic]]:
    """In the order of the file: the widest first, so that each is aligned."""
    columns = entries.columns.values()
    offsets, sizes = [c.offsets for c in columns], [c.sizes for c in columns]
    return [*offsets, entries.ends, *sizes, *(c.kinds for c in columns), entries.keys]


def _little(array: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
    return array.astype(array.dtype.newbyteorder("<"), copy=False)


def _parse(data: bytes, stamp: tuple[int, int]) -> Entries | None:
    begin = data.index(b"\n", 0, _HEADER_LIMIT) + 1
    header = json.loads(data[:begin])
    if header["format"] != _FORMAT or header["stamp"] != list(stamp):
        return None
    if header["crc32"] != zlib.crc32(memoryview(data)[begin:]):
        return None
    count, names = header["samples"], header["fields"]
    if type(count) is not int or count < 1 or not isinstance(names, list):
        return None
    if len(names) > _FIELDS_LIMIT or not all(isinstance(name, str) for name in names):
        return None
    at = begin

    def take(kind: str, length: int) -> npt.NDArray[np.generic]:
        """A view into `data`: nothing is copied, nothing is allocated that is not there."""
        nonlocal at
        dtype = np.dtype(kind).newbyteorder("<")
        array: npt.NDArray[np.generic] = np.frombuffer(data, dtype, length, at)
        at += array.nbytes
        return array.astype(np.dtype(kind), copy=False)

    offsets = [take("i8", count) for _ in names]
    ends = take("u4", count)
    sizes = [take("u4", count) for _ in names]
    kinds = [take("u1", count) for _ in names]
    keys = take("u1", len(data) - at)
    columns = zip(offsets, sizes, kinds, strict=True)
    parsed = {name: Column(*part) for name, part in zip(names, columns, strict=True)}  # type: ignore[arg-type]
    entries = Entries(keys, ends, parsed)  # type: ignore[arg-type]
    return entries if _sound(entries, stamp[0]) else None


def _sound(entries: Entries, size: int) -> bool:
    """Whether all spans lie within the shard's `size` bytes, and all keys are UTF-8."""
    ends = entries.ends.astype(np.int64)
    if np.any(np.diff(ends, prepend=0) < 0) or ends[-1] != len(entries.keys):
        return False
    begins = np.concatenate([[0], ends[:-1]])
    firsts = entries.keys[begins[begins < len(entries.keys)]]
    if np.any((firsts & 0xC0) == 0x80):  # a key would begin inside a character
        return False
    entries.keys.tobytes().decode()
    for column in entries.columns.values():
        there = column.kinds != ABSENT
        if np.any(column.kinds[there] >= len(KINDS)) or np.any(column.offsets[there] < 0):
            return False
        if np.any(column.sizes[there] > archive.MEMBER_LIMIT):
            return False
        # A sum could wrap around; a difference of what is not negative cannot.
        if np.any(column.offsets[there] > size - column.sizes[there].astype(np.int64)):
            return False
    return True
