"""`.npy` and `.npz` arrays from strangers: no pickles, no allocation that the bytes do not cover.

An `.npz` is a zip archive of `.npy` files, one an array. What `numpy.savez` writes is not
compressed, so that a row of a big array is a byte range of the file.
"""

from __future__ import annotations

import io
import math
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from lit_restore.errors import UserError
from lit_restore.io import fs
from lit_restore.io.wording import human_size, shown

INFLATED_LIMIT = 4 << 30
"""Largest array that a compressed `.npz` may hold, in bytes."""

_HEADER = 1 << 14
_LOCAL = 30
"""Bytes of a zip member's own header before its name (APPNOTE.TXT 4.3.7)."""
_MEMBERS = 1000
_RATIO, _HARMLESS = 100, 16 << 20
_SHOWN = 5


@dataclass(frozen=True)
class Rows:
    """An array in a file, without its content: row i are `stride` bytes from `offset` + i·`stride`.

    A row is what stands behind an index of the first axis.
    """

    offset: int
    """Byte of the file (of `inflated`, where there is one) at which row 0 begins."""
    dtype: np.dtype[np.generic]
    shape: tuple[int, ...]
    """Of the whole array, at least one axis."""
    inflated: bytes | None = None
    """The array's bytes where the file holds them compressed."""

    @property
    def stride(self) -> int:
        """Bytes of a row."""
        return math.prod(self.shape[1:]) * self.dtype.itemsize

    @property
    def head(self) -> bytes:
        """What before a row's bytes makes a `.npy` file."""
        stream = io.BytesIO()
        header = np.lib.format.header_data_from_array_1_0(np.empty(0, self.dtype))
        np.lib.format.write_array_header_1_0(stream, {**header, "shape": self.shape[1:]})
        return stream.getvalue()


def parse_npy(data: bytes, *, name: str) -> npt.NDArray[np.generic]:
    """The array in the bytes of a `.npy` file.

    Args:
        data: the whole file.
        name: named in the error line.

    Raises:
        UserError: not `.npy`, holds Python objects, or is shorter or longer than it says.
    """
    begin, _, dtype, shape = _header(data, name)
    needed, held = math.prod(shape) * dtype.itemsize, len(data) - begin
    if needed != held:
        raise UserError(f"needs {needed} bytes for {shape}, has {held}", where=name)
    array: npt.NDArray[np.generic] = np.load(io.BytesIO(data), allow_pickle=False)
    return array


def parse_numbers(data: bytes, *, name: str) -> npt.NDArray[np.generic]:
    """As `parse_npy`; also refuses types that PyTorch has not (text, dates, long doubles)."""
    array = parse_npy(data, name=name)
    check_numbers(array.dtype, name)
    return array.astype(array.dtype.newbyteorder("="), order="C", copy=False)


def npy_bytes(array: npt.NDArray[np.generic]) -> bytes:
    """The array as a `.npy` file."""
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=False)
    return stream.getvalue()


def describe_npy(data: bytes, *, name: str) -> str:
    """Type and shape, as in "float16 4x32x32", from the beginning of a `.npy` file.

    Raises:
        UserError: not `.npy`.
    """
    _, _, dtype, shape = _header(data, name)
    return " ".join([str(dtype), "x".join(map(str, shape))]).strip()


def check_numbers(dtype: np.dtype[np.generic], name: str) -> None:
    """`UserError` for what is no type of number that PyTorch has too."""
    if dtype.kind not in "biufc" or dtype.itemsize > (16 if dtype.kind == "c" else 8):
        raise UserError(f"holds {dtype}, not numbers that PyTorch has", where=name)


def locate_rows(path: Path, array: str | None = None) -> Rows:
    """Where the rows of an array lie in a `.npy` or `.npz` file.

    Args:
        path: the file.
        array: its name in an `.npz`; may be left out where there is one only.

    Raises:
        UserError: missing or damaged, no such array, not numbers, without rows, rows not stored
            one after the other, or a compressed array that inflates too far.
    """
    with fs.open_read(path) as file:
        if path.suffix.lower() == ".npy":
            if array is not None:
                raise UserError("a .npy holds one array without a name", where=path)
            return _rows(file, 0, fs.size(path), str(path))
        with _open_zip(file, str(path)) as archive:
            member = _member(archive, array, str(path))
            where = f"{path}: {shown(member.filename)}"
            if member.compress_type == zipfile.ZIP_STORED:
                return _rows(file, _data_offset(file, member), member.file_size, where)
            data = _inflate(archive, member, fs.size(path), where)
    begin, fortran, dtype, shape = _header(data, where)
    _check_rows(fortran, dtype, shape, len(data) - begin, where)
    return Rows(begin, dtype, shape, data)


def parse_npz(data: bytes, array: str | None, *, name: str) -> npt.NDArray[np.generic]:
    """One array of numbers of an `.npz` file.

    Args:
        data: the whole file.
        array: its name; may be None where the file holds one only.
        name: named in the error line.

    Raises:
        UserError: as `locate_rows` and `parse_numbers`.
    """
    with _open_zip(io.BytesIO(data), name) as archive:
        member = _member(archive, array, name)
        where = f"{name}: {shown(member.filename)}"
        return parse_numbers(_inflate(archive, member, len(data), where), name=where)


def _header(data: bytes, name: str) -> tuple[int, bool, np.dtype[np.generic], tuple[int, ...]]:
    """(where the data begin, whether columns come first, type, shape)."""
    stream = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(stream)
        read = (
            np.lib.format.read_array_header_1_0
            if version == (1, 0)
            else np.lib.format.read_array_header_2_0
        )
        shape, fortran, dtype = read(stream)
    except (ValueError, EOFError):
        raise UserError("not a readable .npy array", where=name) from None
    if dtype.hasobject:
        raise UserError("holds Python objects, refused", where=name)
    return stream.tell(), fortran, dtype, shape


def _rows(file: BinaryIO, at: int, size: int, where: str) -> Rows:
    begin, fortran, dtype, shape = _header(fs.pread(file, min(size, _HEADER), at), where)
    _check_rows(fortran, dtype, shape, size - begin, where)
    return Rows(at + begin, dtype, shape)


def _check_rows(
    fortran: bool, dtype: np.dtype[np.generic], shape: Sequence[int], held: int, where: str
) -> None:
    check_numbers(dtype, where)
    needed = math.prod(shape) * dtype.itemsize
    if needed != held:
        raise UserError(f"needs {needed} bytes for {tuple(shape)}, has {held}", where=where)
    if not needed:
        raise UserError("is empty", where=where)
    if not shape:
        raise UserError("is a single number, not rows of samples", where=where)
    if (fortran and len(shape) > 1) or not dtype.isnative:
        mend = "save it again with numpy.ascontiguousarray, in this machine's byte order"
        raise UserError(f"its rows are not stored one after the other; {mend}", where=where)


def _open_zip(file: BinaryIO | io.BytesIO, where: str) -> zipfile.ZipFile:
    try:
        archive = zipfile.ZipFile(file)
    except (zipfile.BadZipFile, ValueError, OSError, EOFError, NotImplementedError):
        raise UserError("not a readable .npz", where=where) from None
    if len(archive.infolist()) > _MEMBERS:
        raise UserError(f"holds more than {_MEMBERS} arrays, refused", where=where)
    return archive


def _member(archive: zipfile.ZipFile, array: str | None, where: str) -> zipfile.ZipInfo:
    found = {member.filename.removesuffix(".npy"): member for member in archive.infolist()}
    some = ", ".join(shown(name) for name in list(found)[:_SHOWN]) or "nothing"
    if array is None and len(found) == 1:
        return next(iter(found.values()))
    if array is None:
        raise UserError(f"holds {some}; name one with --array", where=where)
    if array not in found:
        raise UserError(f"holds no array {shown(array)}, but {some}", where=where)
    return found[array]


def _data_offset(file: BinaryIO, member: zipfile.ZipInfo) -> int:
    """Where a stored member's bytes begin: after its own header, name and extra field."""
    head = fs.pread(file, _LOCAL, member.header_offset)
    if not head.startswith(b"PK\3\4") or member.flag_bits & 1:
        raise UserError("damaged, or encrypted", where=file.name)
    name, extra = (int.from_bytes(head[k : k + 2], "little") for k in (26, 28))
    return member.header_offset + _LOCAL + name + extra


def _inflate(archive: zipfile.ZipFile, member: zipfile.ZipInfo, length: int, where: str) -> bytes:
    """A member's bytes, which zipfile reads no further than the size that is checked here."""
    if member.file_size > min(INFLATED_LIMIT, max(_HARMLESS, _RATIO * length)):
        told = f"{human_size(length)} inflates to {human_size(member.file_size)}"
        raise UserError(f"{told}, refused", where=where)
    try:
        return archive.read(member)
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, NotImplementedError):
        raise UserError("damaged, or fails its CRC", where=where) from None
