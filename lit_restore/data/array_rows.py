"""Samples that are the rows of one big array: precomputed latents, with or without labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lit_restore.data.sources import Collection, Item, Stored
from lit_restore.errors import UserError
from lit_restore.io import archive, arrays, fs
from lit_restore.io.wording import human_size, shown

_LABELS_LIMIT = 1 << 30


def array_rows(path: Path, *, array: str | None = None, labels: str | None = None) -> Collection:
    """Row i of an array (N, …) in a `.npy` or `.npz` file becomes sample i.

    Nothing but headers and labels is read, unless the `.npz` is compressed: then the array is
    inflated in memory.

    Args:
        path: the file.
        array: its name in an `.npz`; may be left out where there is one only.
        labels: class numbers (N,): another array of the `.npz`, or the path of a `.npy` file.

    Raises:
        UserError: as `arrays.locate_rows`, rows above the size limit, or labels that are no class
            numbers, or not one a row.
    """
    rows = arrays.locate_rows(path, array)
    if rows.stride > archive.MEMBER_LIMIT:
        told = f"{human_size(rows.stride)} a row is above {human_size(archive.MEMBER_LIMIT)}"
        raise UserError(told, where=path)
    count, head = rows.shape[0], rows.head
    numbers = None if labels is None else _labels(path, labels, count)
    stamp, name = fs.stamp(path)[1], array or "row"
    items = []
    for row in range(count):
        begin = rows.offset + row * rows.stride
        held = None if rows.inflated is None else rows.inflated[begin : begin + rows.stride]
        stored = Stored(f"{name}[{row}]", path, begin, rows.stride, stamp, head, held)
        label = None if numbers is None else numbers[row]
        items.append(Item(f"{row:08d}", None, label=label, array=stored))
    return Collection(str(path), items)


def _labels(path: Path, labels: str, count: int) -> list[int]:
    where, name = (Path(labels), None) if labels.endswith(".npy") else (path, labels)
    if where is path and path.suffix.lower() == ".npy":
        raise UserError("give a .npy file beside a .npy", where="--labels")
    rows = arrays.locate_rows(where, name)
    told = f"{where}: {shown(name)}" if name else str(where)
    if rows.dtype.kind not in "iu" or rows.shape not in ((count,), (count, 1)):
        said = f"{rows.dtype} {rows.shape}"
        raise UserError(f"{said} are no class numbers of {count} rows", where=told)
    if count * rows.stride > _LABELS_LIMIT:
        raise UserError(f"above {human_size(_LABELS_LIMIT)}", where=told)
    data = rows.inflated
    if data is None:
        with fs.open_read(where) as file:
            data = fs.pread(file, count * rows.stride, rows.offset)
    else:
        data = data[rows.offset :]
    numbers = np.frombuffer(data, rows.dtype)
    if (numbers < 0).any():
        raise UserError(f"class number {numbers.min()} is negative", where=told)
    return [int(number) for number in numbers]
