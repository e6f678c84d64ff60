"""Samples that are the rows of one big array: precomputed latents, or pictures.

Nothing but headers, labels and offsets is read here, unless an `.npz` is compressed: then the array
is inflated in memory. The rows are read one by one when they are packed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lit_restore.data.pixels import channel_axis
from lit_restore.data.sources import Collection, Item, Stored
from lit_restore.errors import UserError
from lit_restore.io import archive, arrays, fs
from lit_restore.io.wording import human_size, shown

_NUMBERS_LIMIT = 1 << 30
_NAMES_LIMIT = 64 << 20


def array_rows(path: Path, *, array: str | None = None, labels: str | None = None) -> Collection:
    """Row i of an array (N, …) in a `.npy` or `.npz` file becomes sample i, an array.

    Args:
        path: the file.
        array: its name in an `.npz`; may be left out where there is one only.
        labels: class numbers (N,): another array of the `.npz`, or the path of a `.npy` file.

    Raises:
        UserError: as `arrays.locate_rows`, rows above the size limit, or labels that are no class
            numbers, or not one a row.
    """
    rows = arrays.locate_rows(path, array)
    items = [
        Item(f"{number:08d}", None, array=row)
        for number, row in enumerate(_rows(path, array, rows))
    ]
    return _labelled(Collection(str(path), items), path, labels)


def picture_rows(
    path: Path,
    *,
    array: str | None = None,
    labels: str | None = None,
    shape: Sequence[int] | None = None,
) -> Collection:
    """Row i of an array of uint8 pixels becomes sample i, a picture.

    Args:
        path: the file.
        array: as for `array_rows`: (N, H, W), (N, H, W, 1 or 3) or (N, 1 or 3, H, W).
        labels: as for `array_rows`.
        shape: of a row where it is not the file's: 3x32x32 for rows of 3072 numbers.

    Raises:
        UserError: as `array_rows`, or the rows are no pictures.
    """
    rows = arrays.locate_rows(path, array)
    where = f"{path}: {shown(array)}" if array else str(path)
    if rows.dtype != np.uint8:
        raise UserError(f"{rows.dtype} are no levels 0 to 255; save them as uint8", where=where)
    if shape is not None:
        if math.prod(shape) != rows.stride:
            told = f"rows of {rows.stride} numbers are not {'x'.join(map(str, shape))}"
            raise UserError(told, where="--shape")
        rows = replace(rows, shape=(rows.shape[0], *shape))
    channel_axis(rows.shape[1:], where=where)
    items = [Item(f"{number:08d}", row) for number, row in enumerate(_rows(path, array, rows))]
    return _labelled(Collection(str(path), items), path, labels)


def picture_files(
    path: Path, *, offsets: str, array: str | None = None, labels: str | None = None
) -> Collection:
    """JPEG, PNG and WebP files laid end to end in one array of bytes become samples.

    Args:
        path: a `.npz` file.
        offsets: name of the array (N + 1,) of where files begin in `array`, and where the last
            ends: file i is `array[offsets[i] : offsets[i + 1]]`.
        array: name of the array of bytes, uint8.
        labels: as for `array_rows`.

    Raises:
        UserError: as `array_rows`, or the offsets do not cut the bytes into files.
    """
    held = arrays.locate_rows(path, array)
    where = f"{path}: {shown(array or 'array')}"
    if held.dtype != np.uint8 or len(held.shape) != 1:
        told = f"{held.dtype} {held.shape} is not the bytes of files, uint8 (bytes,)"
        raise UserError(told, where=where)
    cuts = _integers(path, offsets, where=f"{path}: {shown(offsets)}").astype(np.int64)
    if cuts[0] != 0 or cuts[-1] != held.shape[0] or len(cuts) < 2 or (np.diff(cuts) <= 0).any():
        told = f"does not rise from 0 to the {held.shape[0]} bytes of the pictures"
        raise UserError(told, where=f"{path}: {shown(offsets)}")
    stored = _cutter(path, array or "file", held)
    items = [
        Item(f"{number:08d}", stored(number, int(begin), int(end - begin), b""))
        for number, (begin, end) in enumerate(pairwise(cuts))
    ]
    return _labelled(Collection(str(path), items), path, labels)


def with_class_names(collection: Collection, path: Path) -> Collection:
    """The collection with the names of its classes.

    Args:
        collection: with labels.
        path: a text file, class k in line k + 1.

    Raises:
        UserError: no labels, an empty line, or a label that has no name.
    """
    text = fs.read_text(path, limit=_NAMES_LIMIT)
    names = tuple(line.strip() for line in text.rstrip().splitlines())
    if "" in names or not names:
        line = names.index("") + 1 if names else 1
        raise UserError(f"line {line} is empty; give one class name a line", where=path)
    labels = [item.label for item in collection.items if item.label is not None]
    if not labels:
        raise UserError("the samples have no labels; give --labels", where="--class_names")
    if max(labels) >= len(names):
        told = f"{len(names)} names, but there is a class number {max(labels)} (the first is 0)"
        raise UserError(told, where=path)
    return replace(collection, classes=names)


def _rows(path: Path, array: str | None, rows: arrays.Rows) -> list[Stored]:
    """Each row as a part of the file which, behind its `head`, is a `.npy`."""
    if rows.stride > archive.MEMBER_LIMIT:
        told = f"{human_size(rows.stride)} a row is above {human_size(archive.MEMBER_LIMIT)}"
        raise UserError(told, where=path)
    stored, head = _cutter(path, array or "row", rows), rows.head
    return [stored(k, k * rows.stride, rows.stride, head) for k in range(rows.shape[0])]


def _cutter(path: Path, name: str, rows: arrays.Rows) -> Callable[[int, int, int, bytes], Stored]:
    """A function of a part's number, first byte in the array, size and head."""
    stamp = fs.stamp(path)[1]

    def stored(number: int, begin: int, size: int, head: bytes) -> Stored:
        at = rows.offset + begin
        held = None if rows.inflated is None else rows.inflated[at : at + size]
        return Stored(f"{name}[{number}]", path, at, size, stamp, head, held)

    return stored


def _labelled(collection: Collection, path: Path, labels: str | None) -> Collection:
    if labels is None:
        return collection
    numbers = _labels(path, labels, len(collection.items))
    items = [
        replace(item, label=number) for item, number in zip(collection.items, numbers, strict=True)
    ]
    return replace(collection, items=items)


def _labels(path: Path, labels: str, count: int) -> list[int]:
    where, name = (Path(labels), None) if labels.endswith(".npy") else (path, labels)
    if where is path and path.suffix.lower() == ".npy":
        raise UserError("give a .npy file beside a .npy", where="--labels")
    told = f"{where}: {shown(name)}" if name else str(where)
    numbers = _integers(where, name, where=told, count=count)
    if (numbers < 0).any():
        raise UserError(f"class number {numbers.min()} is negative", where=told)
    return [int(number) for number in numbers]


def _integers(
    path: Path, name: str | None, *, where: str, count: int | None = None
) -> npt.NDArray[np.integer]:
    """A whole array (N,) or (N, 1) of integers; of class numbers where there is a `count`."""
    rows = arrays.locate_rows(path, name)
    wanted = rows.shape[0] if count is None else count
    if rows.dtype.kind not in "iu" or rows.shape not in ((wanted,), (wanted, 1)):
        what = "offsets" if count is None else f"class numbers of {count} rows"
        raise UserError(f"{rows.dtype} {rows.shape} are no {what}", where=where)
    if wanted * rows.stride > _NUMBERS_LIMIT:
        raise UserError(f"above {human_size(_NUMBERS_LIMIT)}", where=where)
    data = rows.inflated
    if data is None:
        with fs.open_read(path) as file:
            data = fs.pread(file, wanted * rows.stride, rows.offset)
    else:
        data = data[rows.offset :]
    numbers: npt.NDArray[np.integer] = np.frombuffer(data, rows.dtype)
    return numbers
