"""Safetensors files: a streaming writer, and a reader that trusts no header.

The format (huggingface.co/docs/safetensors): 8 bytes little-endian header length, a JSON header
``{name: {dtype, shape, data_offsets}}`` with ``__metadata__`` (strings), then the data without
gaps. The library accepts a name listed twice and takes seconds over a header of 300,000 empty
tensors, so the header is checked here before anything is allocated.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from os import PathLike
from typing import BinaryIO, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lit_restore.errors import UserError
from lit_restore.io import fs
from lit_restore.io.wording import human_size, shown

HEADER_LIMIT = 16 * 1000**2
"""Longest header, in bytes."""
TENSOR_LIMIT = 100_000
"""Most tensors in one file."""

_METADATA = "__metadata__"
_CHUNK = 1 << 22
_MOST_AXES = 64
_LARGEST = 1 << 60

DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "C64": torch.complex64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "F8_E8M0": torch.float8_e8m0fnu,
}
"""Every dtype of the format that PyTorch stores in whole bytes."""
CODES = {dtype: code for code, dtype in DTYPES.items()}
"""The format's name of each dtype."""


class Sink(Protocol):
    """Anything bytes can be streamed into."""

    def write(self, data: bytes, /) -> object:
        """Append `data`."""
        ...


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor as the header describes it."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    """First byte, counted from the end of the header."""
    end: int
    """One past the last byte."""


@dataclass(frozen=True, slots=True)
class Header:
    """A checked header."""

    metadata: dict[str, str]
    entries: tuple[TensorEntry, ...]
    """In the order of their data."""
    data: int
    """The byte of the file at which the data begin."""


def save_tensors(
    file: Sink, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Stream tensors as safetensors into `file`, holding one chunk of 4 MB in memory at a time.

    The bytes are a function of the contents alone: largest elements first (so all stay aligned),
    then by name.

    Args:
        file: has ``write(bytes)``.
        tensors: dense tensors of any shape, device and dtype of `DTYPES`.
        metadata: strings kept in the header.
    """
    assert sys.byteorder == "little", "safetensors data are little-endian"
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header: dict[str, object] = {_METADATA: dict(sorted(metadata.items()))} if metadata else {}
    begin = 0
    for name in names:
        tensor = tensors[name]
        assert name != _METADATA
        assert tensor.layout == torch.strided, name
        end = begin + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": CODES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
        begin = end
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    assert len(text) <= HEADER_LIMIT, len(text)
    assert len(names) <= TENSOR_LIMIT, len(names)
    file.write(len(text).to_bytes(8, "little") + text)
    for name in names:
        for chunk in _chunks(tensors[name]):
            file.write(chunk)


def load_tensors(
    path: str | PathLike[str], device: torch.device | str = "cpu"
) -> dict[str, Tensor]:
    """All tensors of a safetensors file, by name.

    Args:
        path: the file.
        device: where the tensors go.

    Raises:
        UserError: the file is missing, damaged or beyond the limits; nothing was allocated then.
    """
    with fs.open_read(path) as file:
        header = _header(file, str(path))
        return {
            entry.name: _load(file, entry, header.data, str(path)).to(device)
            for entry in header.entries
        }


class TensorFile:
    """A safetensors file whose tensors are read one by one.

    Args:
        path: the file; its header is checked now, its data are read when asked for.

    Raises:
        UserError: as `load_tensors`.
    """

    def __init__(self, path: str | PathLike[str]) -> None:
        self.path = path
        header = read_header(path)
        self._data = header.data
        self._entries = {entry.name: entry for entry in header.entries}

    def read(self, name: str) -> Tensor:
        """One tensor, on the CPU.

        Raises:
            UserError: the file has no such tensor, or cannot be read.
        """
        if name not in self._entries:
            raise UserError(f"holds no tensor {shown(name)}", where=self.path)
        with fs.open_read(self.path) as file:
            return _load(file, self._entries[name], self._data, str(self.path))


def read_metadata(path: str | PathLike[str]) -> dict[str, str]:
    """The strings in the header of a safetensors file, after the same checks as `load_tensors`."""
    return read_header(path).metadata


def read_header(path: str | PathLike[str]) -> Header:
    """Names, dtypes, shapes and metadata of a safetensors file, without its data.

    Raises:
        UserError: as `load_tensors`.
    """
    with fs.open_read(path) as file:
        return _header(file, str(path))


def _chunks(tensor: Tensor) -> Iterator[bytes]:
    flat = tensor.detach().contiguous().reshape(-1)
    step = _CHUNK // flat.element_size()
    for begin in range(0, flat.numel(), step):
        yield flat[begin : begin + step].cpu().view(torch.uint8).numpy().tobytes()


def _load(file: BinaryIO, entry: TensorEntry, data: int, where: str) -> Tensor:
    tensor = torch.empty(entry.shape, dtype=entry.dtype)
    if entry.begin == entry.end:
        return tensor
    bytes_: npt.NDArray[np.uint8] = tensor.reshape(-1).view(torch.uint8).numpy()
    target = bytes_.data
    filled = 0
    try:
        while filled < len(target):
            got = os.preadv(file.fileno(), [target[filled:]], data + entry.begin + filled)
            if not got:
                raise UserError(f"ends inside {shown(entry.name)}", where=where)
            filled += got
    except OSError as error:
        raise UserError(f"cannot be read ({error.strerror})", where=where) from None
    return tensor


def _header(file: BinaryIO, where: str) -> Header:
    length = os.fstat(file.fileno()).st_size
    if length == 0:
        raise UserError("empty file", where=where)
    if length < 8:
        raise UserError("truncated, or not a safetensors file", where=where)
    size = int.from_bytes(fs.pread(file, 8, 0), "little")
    if 8 + size > length:
        raise UserError(f"header says {human_size(size)}, file has {length} bytes", where=where)
    if size > HEADER_LIMIT:
        raise UserError(
            f"header of {human_size(size)} is above {human_size(HEADER_LIMIT)}", where=where
        )
    text = fs.pread(file, size, 8)
    _check_count(text.count(b'"data_offsets"'), where)  # parsing 16 MB of them takes seconds
    content = _parse(text, where)
    metadata = _metadata(content.pop(_METADATA, {}), where)
    _check_count(len(content), where)
    entries = [_entry(name, value, where) for name, value in content.items()]
    entries.sort(key=lambda entry: (entry.begin, entry.end))
    _check_layout(entries, length - 8 - size, where)
    return Header(metadata, tuple(entries), 8 + size)


def _check_count(count: int, where: str) -> None:
    if count > TENSOR_LIMIT:
        raise UserError(f"{count} tensors, limit {TENSOR_LIMIT}", where=where)


def _parse(text: bytes, where: str) -> dict[str, object]:
    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        found = dict(pairs)
        if len(found) < len(pairs):
            twice, _ = Counter(name for name, _ in pairs).most_common(1)[0]
            raise UserError(f"tensor {shown(twice)} is listed twice", where=where)
        return found

    try:
        content = json.loads(text.decode(), object_pairs_hook=unique)
    except UserError:
        raise
    except (ValueError, RecursionError):
        raise UserError("truncated, or not a safetensors file", where=where) from None
    if not isinstance(content, dict):
        raise UserError("truncated, or not a safetensors file", where=where)
    return content


def _metadata(value: object, where: str) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(v, str) for v in value.values()):
        raise UserError("metadata must map names to strings", where=where)
    return value


def _entry(name: str, value: object, where: str) -> TensorEntry:
    def bad(what: str) -> UserError:
        return UserError(f"tensor {shown(name)}: {what}", where=where)

    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        raise bad("needs dtype, shape and data_offsets")
    code, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(code, str) or code not in DTYPES:
        raise bad(f"dtype {shown(str(code))} is not supported")
    if not _counts(shape) or len(shape) > _MOST_AXES:
        raise bad("bad shape")
    if not _counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise bad("bad data_offsets")
    if math.prod(max(1, axis) for axis in shape) >= _LARGEST:
        raise bad("bad shape")  # an empty tensor whose strides overflow
    needed, held = math.prod(shape) * DTYPES[code].itemsize, offsets[1] - offsets[0]
    if needed != held:
        raise bad(f"shape needs {human_size(needed)}, data_offsets give {human_size(held)}")
    return TensorEntry(name, DTYPES[code], tuple(shape), offsets[0], offsets[1])


def _counts(value: object) -> bool:
    return isinstance(value, list) and all(
        type(item) is int and 0 <= item < _LARGEST for item in value
    )


def _check_layout(entries: Iterable[TensorEntry], held: int, where: str) -> None:
    """Refuse gaps, overlaps and bytes before or after the tensors; `held` bytes of data exist."""
    at, last = 0, ""
    for entry in entries:
        if entry.begin < at:
            names = " and ".join(sorted((shown(last), shown(entry.name))))
            raise UserError(f"tensors {names} overlap", where=where)
        if entry.begin > at:
            gap = human_size(entry.begin - at)
            raise UserError(f"{gap} unused before tensor {shown(entry.name)}", where=where)
        at, last = entry.end, entry.name
    if at > held:
        raise UserError(
            f"truncated: tensors need {human_size(at)}, file has {human_size(max(held, 0))}",
            where=where,
        )
    if at < held:
        raise UserError(f"{human_size(held - at)} after the last tensor", where=where)
