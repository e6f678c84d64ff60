"""Weights that strangers saved: PyTorch's `.pth` and NumPy's `.npz`, as plain tensors.

A `.pth` is a zip around a pickle. `torch.load(weights_only=True)` runs none of the pickle's code,
but it inflates members without limit and never checks their CRC (a flipped bit loads silently), so
the zip is scanned and verified first. The older formats, a bare pickle or a tar, cannot be scanned
so. Nothing here ever tries again with fewer checks: the file would choose when.
"""

from __future__ import annotations

import argparse
import io
import pickle
import re
import sys
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from os import PathLike
from typing import BinaryIO

import torch
from torch import Tensor

from lit_restore.errors import UserError
from lit_restore.io import fs
from lit_restore.io.archive import scan_tar
from lit_restore.io.arrays import parse_npy
from lit_restore.io.wording import human_size, shown

FILE_LIMIT = 16 * 1000**3
"""Largest file of weights, in bytes."""
PICKLE_LIMIT = 64 * 1000**2
"""Largest pickle inside a `.pth`, in bytes: structure only, the numbers lie beside it."""
ARRAYS_LIMIT = 2 * 1000**3
"""Most bytes the arrays of one `.npz` may take."""

_ZIP = b"PK\x03\x04"
_PICKLE = b"\x80"
_OVERHEAD = 1.05
_HARMLESS, _RATIO = 10 * 1000**2, 100
_MOST_MEMBERS = 100_000
_NOT_A_CHECKPOINT = "truncated, or not a checkpoint"
_KNOWN = ("params", "params_ema", "state_dict", "model")
_GLOBAL = re.compile(r"(?:GLOBAL|class) ([\w.]+)")


def load_foreign_weights(
    path: str | PathLike[str],
    member: str | None = None,
    *,
    key: str | None = None,
    prefer: Sequence[str] = (),
    legacy: bool = False,
    trust: bool = False,
) -> dict[str, Tensor]:
    """The named tensors of another project's `.pth` or `.npz`, on the CPU.

    Args:
        path: the file, or a tar that holds it.
        member: the file's name inside the tar `path`.
        key: which dictionary of the file to take, where it holds several.
        prefer: dictionaries to take before others where `key` names none, first the best.
        legacy: also read PyTorch's format from before 1.6; runs no code, but has no checksums.
        trust: run whatever code the file names (implies `legacy`); announced on stderr.

    Returns:
        The file's own dictionary where all its values are tensors, else the one among ``params``,
        ``params_ema``, ``state_dict`` and ``model`` that is such a dictionary.

    Raises:
        UserError: the file is missing, damaged, compressed, needs code, or holds no weights.
    """
    where = str(path) if member is None else f"{path}/{member}"
    with fs.open_read(path) if member is None else _member(path, member) as file:
        head = file.read(len(_ZIP))
        file.seek(0)
        if not head:
            raise UserError("empty file", where=where)
        if head == _ZIP:
            with _zip(file, where) as archive:
                if any(name.endswith(".npy") for name in archive.namelist()):
                    return _arrays(archive, file, where)
                _check_zip(archive, file, where)
        elif not (legacy or trust) and _is_legacy(head, file):
            raise UserError("old pickle format, refused; needs --trust_checkpoint", where=where)
        content = _unpickle(file, trust, where)
    if key is None and isinstance(content, Mapping):
        key = next((name for name in prefer if _is_state(content.get(name))), None)
    return _weights(content, key, where)


def _member(path: str | PathLike[str], name: str) -> BinaryIO:
    """A file inside a tar, as a file of its own in memory."""
    found = {m.name: m for m in scan_tar(path, samples=False, member_limit=ARRAYS_LIMIT)}
    if name not in found:
        raise UserError(f"holds no {shown(name)}", where=path)
    with fs.open_read(path) as file:
        return io.BytesIO(fs.pread(file, found[name].size, found[name].offset))


def _is_legacy(head: bytes, file: BinaryIO) -> bool:
    """A bare pickle, or the tar of PyTorch before 0.1.10."""
    start = file.read(512)
    file.seek(0)
    return head.startswith(_PICKLE) or start[257:262] == b"ustar"


def _zip(file: BinaryIO, where: str) -> zipfile.ZipFile:
    try:
        archive = zipfile.ZipFile(file)
    except (zipfile.BadZipFile, ValueError, OSError, OverflowError, NotImplementedError):
        raise UserError(_NOT_A_CHECKPOINT, where=where) from None
    names = archive.namelist()
    if min((member.header_offset for member in archive.infolist()), default=0) != 0:
        raise UserError(_NOT_A_CHECKPOINT, where=where)
    if len(names) > _MOST_MEMBERS:
        raise UserError(f"{len(names)} members, limit {_MOST_MEMBERS}", where=where)
    if len(set(names)) < len(names):
        raise UserError("a member appears twice, refused", where=where)
    for name in names:
        if name.startswith("/") or "\\" in name or ".." in name.split("/"):
            raise UserError(f'member "{shown(name)}" refused (path)', where=where)
    return archive


def _check_zip(archive: zipfile.ZipFile, file: BinaryIO, where: str) -> None:
    """What PyTorch writes, and nothing that inflates; every byte against its CRC."""
    members, length = archive.infolist(), file.seek(0, io.SEEK_END)
    packed, unpacked = sum(m.compress_size for m in members), sum(m.file_size for m in members)
    inner = [m.filename.partition("/")[2] for m in members]
    if "constants.pkl" in inner or any(name.startswith("code/") for name in inner):
        raise UserError("TorchScript, not a state dict", where=where)
    sizes = f"({human_size(packed)} to {human_size(unpacked)})"
    if any(m.compress_type != zipfile.ZIP_STORED for m in members):
        raise UserError(f"compressed members {sizes}, refused", where=where)
    if unpacked > _OVERHEAD * length or packed > _OVERHEAD * length:
        raise UserError(f"members larger than the file {sizes}, refused", where=where)
    pickles = [m for m in members if m.filename.rpartition("/")[2] == "data.pkl"]
    if len(pickles) != 1:
        raise UserError(f"holds {len(pickles)} data.pkl, expected one", where=where)
    if pickles[0].file_size > PICKLE_LIMIT:
        raise UserError(f"data.pkl of {human_size(pickles[0].file_size)}, refused", where=where)
    for member in members:
        _verify(archive, member, where)
    file.seek(0)


def _verify(archive: zipfile.ZipFile, member: zipfile.ZipInfo, where: str) -> None:
    """Read one member to its end, where `zipfile` compares the CRC."""
    try:
        with archive.open(member) as stream:
            while stream.read(1 << 22):
                pass
    except zipfile.BadZipFile as error:
        name = shown(member.filename.partition("/")[2] or member.filename)
        what = f"{name} fails its CRC" if "CRC" in str(error) else f"{name} is damaged"
        raise UserError(what, where=where) from None
    except (EOFError, OSError, RuntimeError, NotImplementedError):
        raise UserError(_NOT_A_CHECKPOINT, where=where) from None


def _unpickle(file: BinaryIO, trust: bool, where: str) -> object:
    if trust:
        print(f"warning: {where}: trusted; it may run code of its own", file=sys.stderr)
    try:
        # Training scripts save their arguments beside the weights; a namespace runs nothing.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(file, map_location="cpu", weights_only=not trust)
    except pickle.UnpicklingError as error:
        needed = _GLOBAL.search(str(error))
        if needed is None or trust:
            raise UserError(_NOT_A_CHECKPOINT, where=where) from None
        raise UserError(
            f"needs {needed[1]}, refused; --trust_checkpoint would run it", where=where
        ) from None
    except Exception:
        # A hostile pickle chooses what it raises; none of it is worth a traceback.
        if trust:
            raise
        raise UserError(_NOT_A_CHECKPOINT, where=where) from None


def _weights(content: object, key: str | None, where: str) -> dict[str, Tensor]:
    """The one dictionary of tensors in what a file held."""
    if not isinstance(content, Mapping):
        raise UserError(f"holds a {type(content).__name__}, not a state dict", where=where)
    if key is not None:
        if not _is_state(content.get(key)):
            raise UserError(f"holds no weights under {shown(key)}", where=where)
        return _plain(content[key], where)
    if _is_state(content):
        return _plain(content, where)
    found = [name for name in _KNOWN if _is_state(content.get(name))]
    if len(found) == 1:
        return _plain(content[found[0]], where)
    if found:
        raise UserError(f"holds several sets of weights, {', '.join(found)}; name one", where=where)
    names = ", ".join(shown(str(name)) for name in list(content)[:5])
    raise UserError(f"holds no state dict; its keys are {names or 'none'}", where=where)


def _is_state(content: object) -> bool:
    return (
        isinstance(content, Mapping)
        and bool(content)
        and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in content.items())
    )


def _plain(content: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """Dense tensors that own what they show: a stride of 0 makes a terabyte out of four bytes."""
    for name, tensor in content.items():
        dense = tensor.layout == torch.strided and tensor.device.type == "cpu"
        if not dense or tensor.is_quantized:
            raise UserError(f"{shown(name)} is not a dense tensor, refused", where=where)
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise UserError(f"{shown(name)} is larger than its data, refused", where=where)
    return {name: tensor.detach() for name, tensor in content.items()}


def _arrays(archive: zipfile.ZipFile, file: BinaryIO, where: str) -> dict[str, Tensor]:
    """The arrays of a `.npz`, each checked before it is allocated."""
    length, total = file.seek(0, io.SEEK_END), sum(m.file_size for m in archive.infolist())
    if total > ARRAYS_LIMIT or total > max(_HARMLESS, _RATIO * length):
        raise UserError(
            f"{human_size(length)} inflates to {human_size(total)}, refused", where=where
        )
    return {
        member.filename.removesuffix(".npy"): _array(archive, member, where)
        for member in archive.infolist()
    }


def _array(archive: zipfile.ZipFile, member: zipfile.ZipInfo, where: str) -> Tensor:
    name = f"{where}/{shown(member.filename)}"
    try:
        data = archive.read(member)
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, NotImplementedError):
        raise UserError("damaged, or fails its CRC", where=name) from None
    array = parse_npy(data, name=name)
    if array.dtype.kind not in "biufc":
        raise UserError(f"holds {array.dtype}, not numbers", where=name)
    try:
        return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), order="C"))
    except TypeError:
        raise UserError(f"holds {array.dtype}, which PyTorch has not", where=name) from None
