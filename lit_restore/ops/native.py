"""Builds a C++ file on its first use, keeps the library, loads it.

For code without any header but the standard library's: a fraction of a second with whatever
compiler there is, and nothing to be found or matched when the package is installed. A library's
name holds the instruction set and a hash of all it was made of, so a cache folder serves machines,
compilers and versions side by side. It gets its name when it is whole; two processes that build
at once make the same file twice.

This file alone of all outside `lit_restore/io` writes to the disk: `ops` may be used without `io`.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import secrets
import shlex
import subprocess
import sys
import warnings
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

_log = logging.getLogger(__name__)

COMPILERS = ("c++", "g++", "clang++")
FLAGS = ("-std=c++17", "-O2", "-shared", "-fPIC", "-pthread", "-fno-math-errno",
         "-fno-trapping-math", "-ffp-contract=fast")  # fmt: skip
"""No -ffast-math: a library linked with it makes the whole process flush denormal numbers."""
HEADER = Path(__file__).with_suffix(".h")
"""Vectors and threads, for all kernels."""
LEVELS = {
    "avx512": ("avx512f", "avx512dq", "avx512bw", "avx512vl", "avx2", "fma"),
    "avx2": ("avx2", "fma"),
    "baseline": (),
}
"""Instruction set → the CPU flags it needs, which are also the compiler's; the best first."""
_SECONDS = 300
_warned: list[str] = []


class NativeError(Exception):
    """No library: there is no compiler, it failed, or there is no place for what it makes."""


def load(source: Path, *headers: Path) -> ctypes.CDLL:
    """The library of a C++ file, built if this user has not built it before.

    Args:
        source: a file with ``extern "C"`` functions.
        headers: what it includes of ours; found in their folders.

    Raises:
        NativeError: says why in one line. The reason is kept, and no second attempt made.
    """
    found = _attempt(source, headers)
    if isinstance(found, str):
        raise NativeError(found)
    return found


def unavailable(source: Path, *headers: Path) -> str | None:
    """Why `load` would fail, in a line, told as a warning once in a process; None if it works."""
    found = _attempt(source, headers)
    if not isinstance(found, str):
        return None
    _warn_once(found)
    return found


def address(tensor: Any) -> int | None:
    """Where a tensor's data is, for a pointer in a `ctypes.Structure`; None for None."""
    return None if tensor is None else int(tensor.data_ptr())


@cache
def _attempt(source: Path, headers: tuple[Path, ...]) -> ctypes.CDLL | str:
    try:
        folder = _private_folder()
    except OSError as error:
        return f"cannot write to {cache_folder()} ({error.strerror}); set LIT_RESTORE_CACHE"
    except NativeError as error:
        return str(error)
    why = f"no C++ compiler found ($CXX, {', '.join(COMPILERS)})"
    for compiler, version in _compilers():
        for level in levels():
            try:
                return _loaded(source, headers, folder, compiler, version, level)
            except (NativeError, OSError) as error:
                why = str(error)
                _log.debug("%s with %s for %s: %s", source, compiler, level, error)
    return why


def levels(flags: frozenset[str] | None = None) -> list[str]:
    """The instruction sets of `LEVELS` that this CPU has, the best first.

    Args:
        flags: what the CPU has, as Linux names it; None to ask.
    """
    has = _cpu_flags() if flags is None else flags
    return [name for name, needs in LEVELS.items() if has.issuperset(needs)]


def cache_folder() -> Path:
    """Where libraries are kept: beside the shards, as `lit_restore.io.cache.default_folder`."""
    named = os.environ.get("LIT_RESTORE_CACHE")
    home = os.path.expanduser(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    # A user without a home, as in some containers.
    top = Path("data/cache") if home.startswith("~") else Path(home) / "lit_restore"
    return (Path(os.path.expanduser(named)) if named else top) / f"native-{os.getuid()}"


def _private_folder() -> Path:
    """The cache folder, made if need be: what is loaded from it runs, so it is nobody else's."""
    folder = cache_folder()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    _refuse_foreign(folder)
    if not os.access(folder, os.W_OK):
        raise NativeError(f"cannot write to {folder}; set LIT_RESTORE_CACHE")
    return folder


def _refuse_foreign(path: Path) -> None:
    status = os.stat(path)
    if status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise NativeError(f"{path} is not yours, or others may write to it; remove it")


def _compilers() -> Iterator[tuple[list[str], str]]:
    """Those that answer: the command and what it says of itself."""
    named = os.environ.get("CXX")
    for command in ([named] if named else []) + list(COMPILERS):
        try:
            words = shlex.split(command)
            yield words, _run([*words, "--version"])
        except (NativeError, OSError, ValueError):  # the last: quotes that do not end
            continue


def _loaded(
    source: Path, headers: Sequence[Path], folder: Path, compiler: list[str], version: str,
    level: str,
) -> ctypes.CDLL:  # fmt: skip
    flags = [*FLAGS, *(f"-m{flag}" for flag in LEVELS[level])]
    flags += sorted({f"-I{header.parent}" for header in headers})
    files = [path.read_bytes() for path in (source, *headers)]
    parts = [*files, *(text.encode() for text in (*flags, *compiler, version, platform.machine()))]
    digest = hashlib.sha256(b"\0".join(parts)).hexdigest()[:20]
    path = folder / f"{source.parent.name}-{level}-{digest}.so"
    if path.exists():
        _refuse_foreign(path)
        try:
            return ctypes.CDLL(str(path))
        except OSError as error:  # a crash of the machine, a full disk
            _log.warning("%s: rebuilt, it could not be loaded (%s)", path, error)
    _build([*compiler, *flags, str(source)], path)
    return ctypes.CDLL(str(path))


def _build(command: list[str], path: Path) -> None:
    # Not the process number alone: threads share it, and so may machines that share the folder.
    draft = path.with_name(f"tmp-{secrets.token_hex(8)}-{path.name}")
    try:
        _run([*command, "-o", str(draft)])
        os.chmod(draft, 0o700)
        os.replace(draft, path)
        _log.info("built %s", path)
    finally:
        draft.unlink(missing_ok=True)


def _warn_once(why: str) -> None:
    if not _warned:
        _warned.append(why)
        warnings.warn(
            f"{why}: plain PyTorch does the work of the C++ kernels, many times slower",
            RuntimeWarning,
            stacklevel=2,
        )


def _run(command: list[str]) -> str:
    """What a command prints.

    Raises:
        NativeError: its first line of complaint.
        OSError: there is no such command.
    """
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_SECONDS
        )
    except subprocess.TimeoutExpired:
        raise NativeError(f"{command[0]} took more than {_SECONDS} s") from None
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if "error" in line] or [f"{done.stderr}"]
        raise NativeError(f"{command[0]} failed: {said[0].strip()[:200]}")
    return done.stdout


@cache
def _cpu_flags() -> frozenset[str]:
    """Linux's names of what an x86 CPU can do; empty elsewhere, where the baseline is taken."""
    if sys.platform != "linux" or platform.machine() not in ("x86_64", "AMD64"):
        return frozenset()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line for line in lines if line.startswith("flags")), "").split())
