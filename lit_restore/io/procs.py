"""What other processes of this machine are doing, as the kernel says."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lit_restore.errors import UserError
from lit_restore.io import fs

State = Literal["alive", "stopped", "gone"]


@dataclass(frozen=True)
class Process:
    """One process, told apart from a later one of the same number."""

    host: str
    space: str
    """The machine and its PID name space: two containers may have the same host name."""
    pid: int
    born: int
    """When it started, clock ticks since the machine did."""


def this_process() -> Process:
    """The calling process."""
    pid = os.getpid()
    return Process(socket.gethostname(), _space(), pid, _born(pid))


def state_of(process: Process) -> State | None:
    """Whether a process runs, is stopped (SIGSTOP, a debugger) or is gone; None from elsewhere.

    One that ended and is not yet reaped by its parent is gone too.
    """
    if process.space != _space() or not process.born:
        return None
    fields = _fields(process.pid)
    if fields is None or fields[0] in "ZXx" or int(fields[19]) != process.born:
        return "gone"
    return "stopped" if fields[0] in "Tt" else "alive"


def is_alive(pid: int) -> bool:
    """Whether a process of this number runs on this machine."""
    fields = _fields(pid)
    return fields is not None and fields[0] not in "ZXx"


def _born(pid: int) -> int:
    fields = _fields(pid)
    return 0 if fields is None else int(fields[19])


def _fields(pid: int) -> list[str] | None:
    """What follows the name in /proc/PID/stat: the state, …, the start time (proc(5))."""
    try:
        text = fs.read_text(f"/proc/{pid}/stat")
    except (OSError, UserError):
        return None
    return text.rpartition(")")[2].split()


def _space() -> str:
    try:
        boot = fs.read_text("/proc/sys/kernel/random/boot_id").strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except (OSError, UserError):
        return "unknown"
