"""What is left of a data worker that died, in one line."""

from __future__ import annotations

import re
import signal
import traceback
from typing import Any

from lit_restore.errors import RankLost

_SHARED = re.compile(
    r"unable to (allocate|open|write|mmap)\b.*(shared memory|/torch_)|DataLoader worker.*Bus error"
)
_LOADER = re.compile(
    r"DataLoader worker \(pid\(?s?\)? ?(?P<pids>[\d, ]+)\)"
    r"(?: is killed by signal: (?P<signal>[^.]*)| exited unexpectedly)"
)
_LATE = re.compile(r"DataLoader timed out after (\d+)")
_PIPE = (ConnectionResetError, ConnectionRefusedError, BrokenPipeError, EOFError)
_AGAIN = "start again, or with fewer data.workers"


def dead_worker(error: BaseException) -> RankLost | None:
    """The error line if `error` says that a data worker died; else None.

    Which exception that is depends on where the loader stood: its own `RuntimeError`, the same out
    of a signal handler, or a broken pipe.
    """
    if isinstance(error, RuntimeError):
        text = str(error)
        found, late = _LOADER.search(text), _LATE.search(text)
        if _SHARED.search(text):
            return RankLost(
                "shared memory (/dev/shm) is full; give the container more (--shm-size 8g) "
                "or set data.workers=0"
            )
        if late:
            return RankLost(f"the data workers gave nothing for {late[1]} s; start again")
        if found is None:
            return None
        return _line(found["pids"].strip(), _ended_by(error) or _spoken(found["signal"]))
    if isinstance(error, _PIPE) and _loaders(error):
        return _line("", _ended_by(error))
    return None


def _line(pids: str, how: str | None) -> RankLost:
    who = f"data worker (pid {pids})" if pids else "a data worker"
    return RankLost(f"{who} {how or 'died (memory?)'}; {_AGAIN}")


def _ended_by(error: BaseException) -> str | None:
    """How the first worker ended that did not end well."""
    for loader in _loaders(error):
        for worker in loader._workers:
            worker.join(1.0 if isinstance(error, _PIPE) else 0.0)
            if worker.exitcode is not None and worker.exitcode < 0:
                return _spoken(signal.strsignal(-worker.exitcode))
            if worker.exitcode:
                return f"ended with code {worker.exitcode}"
    return None


def _spoken(text: str | None) -> str | None:
    """A signal by its name, given as the C library says it ("Killed")."""
    for number in signal.valid_signals():
        if text and signal.strsignal(number) == text.strip():
            name = signal.Signals(number).name
            return f"was killed by {name}{' (memory?)' if number == signal.SIGKILL else ''}"
    return f"was killed ({text.strip()})" if text else None


def _loaders(error: BaseException) -> list[Any]:
    """The loaders with workers that the exception came through."""
    owners = [frame.f_locals.get("self") for frame, _ in traceback.walk_tb(error.__traceback__)]
    return [owner for owner in owners if hasattr(owner, "_workers")]
