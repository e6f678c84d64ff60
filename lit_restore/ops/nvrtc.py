"""Compiles a CUDA file on its first use, keeps the machine code, launches its kernels.

NVRTC and the bindings to it (``cuda.bindings``, NVIDIA's) come with PyTorch's CUDA wheels: no
toolkit, no headers, and no GPU either to compile. What it makes is kept in the folder of `native`,
under a hash of all it was made of, beside a checksum of itself: a file that a crash left behind is
made again. Without a place to write to it is compiled in every process.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import logging
import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from lit_restore.ops import native

_log = logging.getLogger(__name__)

OPTIONS = ("--std=c++17", "--fmad=true")
"""No --use_fast_math: the kernels say themselves where an approximation will do."""
_DIGEST = hashlib.sha256().digest_size


class NvrtcError(Exception):
    """No kernel: NVRTC is not there, refused the source, or the driver refused what it made."""


@dataclass(frozen=True)
class Source:
    """A CUDA file and what it is compiled with."""

    path: Path
    headers: tuple[Path, ...] = ()
    """What it includes, under their names."""
    defines: tuple[tuple[str, int], ...] = ()
    """Macros and their numbers."""


@cache
def unavailable() -> str | None:
    """Why nothing can be compiled here, in a line; None if it can. The device is not asked."""
    if importlib.util.find_spec("cuda") is None or not importlib.util.find_spec("cuda.bindings"):
        return "cuda.bindings is not installed"
    try:
        version()
        supported()
    except NvrtcError as error:
        return str(error)
    return None


@cache
def version() -> tuple[int, int]:
    """NVRTC's.

    Raises:
        NvrtcError: it cannot be loaded.
    """
    major, minor = _compiler("nvrtcVersion")
    return int(major), int(minor)


@cache
def supported() -> tuple[int, ...]:
    """The architectures that NVRTC compiles for, 90 for sm_90, in ascending order.

    Raises:
        NvrtcError: it cannot be loaded.
    """
    return tuple(int(arch) for arch in _compiler("nvrtcGetSupportedArchs")[0])


def architecture(capability: tuple[int, int]) -> str | None:
    """The best one to compile for, "sm_90" for (9, 0); None where NVRTC does not know the device.

    Code for an older device of the same major number runs too.

    Args:
        capability: the device's, as `torch.cuda.get_device_capability` has it.

    Raises:
        NvrtcError: NVRTC cannot be loaded.
    """
    major, minor = capability
    fit = [arch for arch in supported() if arch // 10 == major and arch % 10 <= minor]
    return f"sm_{fit[-1]}" if fit else None


def cubin(source: Source, arch: str) -> bytes:
    """The machine code, compiled if this user has not compiled it before.

    Args:
        source: what to compile.
        arch: "sm_90", for instance.

    Raises:
        NvrtcError: NVRTC cannot be loaded, or refuses the source.
        OSError: the source cannot be read.
    """
    texts = [path.read_bytes() for path in (source.path, *source.headers)]
    defines = (f"-D{name}={value}" for name, value in source.defines)
    options = [f"--gpu-architecture={arch}", *OPTIONS, *defines]
    parts = [*texts, *(option.encode() for option in options), repr(version()).encode()]
    digest = hashlib.sha256(b"\0".join(parts)).hexdigest()[:20]
    name = f"{source.path.parent.name}-{source.path.stem}-{arch}-{digest}.cubin"
    try:
        path = native._private_folder() / name
    except (native.NativeError, OSError) as error:
        _log.warning("%s is compiled again in every process: %s", source.path.name, error)
        return _compiled(source, texts, options)
    found = _read(path)
    if found is None:
        found = _compiled(source, texts, options)
        try:
            _write(path, found)
        except OSError as error:
            _log.warning("%s: not kept (%s)", path, error)
    return found


def _read(path: Path) -> bytes | None:
    """What `_write` wrote, if all of it is there."""
    try:
        native._refuse_foreign(path)
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    except (native.NativeError, OSError) as error:
        _log.warning("%s: made again, it cannot be used (%s)", path, error)
        return None
    if hashlib.sha256(data[_DIGEST:]).digest() == data[:_DIGEST]:
        return data[_DIGEST:]
    _log.warning("%s: made again, it is damaged", path)
    return None


def _write(path: Path, code: bytes) -> None:
    """Under its name only when it is whole and on the disk."""
    draft = path.with_name(f"tmp-{secrets.token_hex(8)}-{path.name}")
    try:
        handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(handle, "wb") as file:
            file.write(hashlib.sha256(code).digest() + code)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
        _log.info("compiled %s", path)
    finally:
        draft.unlink(missing_ok=True)


def _compiled(source: Source, texts: Sequence[bytes], options: Sequence[str]) -> bytes:
    names = [path.name.encode() for path in source.headers]
    name, headers = source.path.name.encode(), list(texts[1:])
    (program,) = _compiler("nvrtcCreateProgram", texts[0], name, len(names), headers, names)
    try:
        try:
            _compiler("nvrtcCompileProgram", program, len(options), [o.encode() for o in options])
        except NvrtcError as error:
            raise NvrtcError(f"{source.path.name}: {_complaint(program) or error}") from None
        (size,) = _compiler("nvrtcGetCUBINSize", program)
        code = b"\0" * int(size)  # filled in place
        _compiler("nvrtcGetCUBIN", program, code)
        return code
    finally:
        _compiler("nvrtcDestroyProgram", program)


def _complaint(program: Any) -> str:
    """The first line of NVRTC's log that names an error."""
    (size,) = _compiler("nvrtcGetProgramLogSize", program)
    log = b"\0" * int(size)
    _compiler("nvrtcGetProgramLog", program, log)
    lines = log.rstrip(b"\0").decode(errors="replace").splitlines()
    return next((line for line in lines if "error" in line), "").strip()[:200]


def _compiler(function: str, *args: Any) -> tuple[Any, ...]:
    """What a function of NVRTC returns.

    Raises:
        NvrtcError: it failed, or there is no NVRTC.
    """
    try:
        from cuda.bindings import nvrtc

        status, *found = getattr(nvrtc, function)(*args)
    except (ImportError, RuntimeError, AttributeError) as error:  # no library, an old one
        raise NvrtcError(f"NVRTC cannot be loaded: {_line(error)}") from None
    if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        raise NvrtcError(f"{function} failed: {status.name}")
    return tuple(found)


# ---- launching


@dataclass(frozen=True)
class Kernel:
    """A function on one device."""

    function: Any
    context: Any
    device: torch.device

    def launch(self, blocks: int, threads: int, args: ctypes.Structure) -> None:
        """Put a call on PyTorch's current stream of the device.

        Args:
            blocks: of the grid, along its one axis.
            threads: of a block.
            args: the kernel's one argument, passed by value.

        Raises:
            NvrtcError: the driver refused.
        """
        stream = torch.cuda.current_stream(self.device).cuda_stream
        pointers = (ctypes.c_void_p * 1)(ctypes.addressof(args))
        # A thread that has computed nothing yet has no context, and another's may be current.
        _driver("cuCtxPushCurrent", self.context)
        try:
            _driver(
                "cuLaunchKernel", self.function, blocks, 1, 1, threads, 1, 1, 0, stream,
                ctypes.addressof(pointers), 0,
            )  # fmt: skip
        finally:
            _driver("cuCtxPopCurrent")


@cache
def kernel(source: Source, name: str, device: torch.device) -> Kernel:
    """A kernel ready to launch; it stays loaded until the process ends.

    Args:
        source: a file with ``extern "C" __global__`` functions.
        name: of the function.
        device: of type "cuda", with its number.

    Raises:
        NvrtcError: it cannot be compiled for the device or loaded there.
    """
    capability = torch.cuda.get_device_capability(device)
    arch = architecture(capability)
    if arch is None:
        raise NvrtcError(f"NVRTC {version()} does not know compute capability {capability}")
    code = cubin(source, arch)
    (handle,) = _driver("cuDeviceGet", device.index)
    (context,) = _driver("cuDevicePrimaryCtxRetain", handle)
    _driver("cuCtxPushCurrent", context)
    try:
        (module,) = _driver("cuModuleLoadData", code)
        (function,) = _driver("cuModuleGetFunction", module, name.encode())
    finally:
        _driver("cuCtxPopCurrent")
    return Kernel(function, context, device)


def _driver(function: str, *args: Any) -> tuple[Any, ...]:
    """What a function of the driver returns.

    Raises:
        NvrtcError: it failed, or there is no driver.
    """
    try:
        from cuda.bindings import driver

        status, *found = getattr(driver, function)(*args)
    except (ImportError, RuntimeError, AttributeError) as error:
        raise NvrtcError(f"the CUDA driver cannot be loaded: {_line(error)}") from None
    if status != driver.CUresult.CUDA_SUCCESS:
        raise NvrtcError(f"{function} failed: {status.name}")
    return tuple(found)


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
