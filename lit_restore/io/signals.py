"""A signal asks the run to stop: it sets a flag, and whoever trains looks at the flag.

`install` belongs in the first lines of a program, before imports that take seconds: a signal that
comes meanwhile is then kept, not lost or deadly. SIGTERM, SIGUSR1 and the first SIGINT (Ctrl-C) set
the flag; the second SIGINT leaves at once with code 130. Source: reliability §2.2.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType

STOPPING = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
"""The signals that ask for a stop."""
GRACE = 30.0
"""Seconds that a data worker goes on after a SIGTERM to the whole process group: the trainer needs
it until the step is done."""
_INTERRUPTED = 130
_TERMINATED = 128 + signal.SIGTERM
_FORGET = b"\0"  # no signal has this number


class _Requests:
    """What has come so far."""

    def __init__(self) -> None:
        self.first: int | None = None
        self.told: set[int] = set()
        self.interrupts = 0


_requests = _Requests()
_wakeup: tuple[int, int] | None = None


def install() -> None:
    """Take SIGTERM, SIGUSR1 and SIGINT; in the main thread. Twice does no harm."""
    reinstall()
    _watch_interrupts()


def reinstall() -> bool:
    """Take the signals again, after a library set handlers of its own.

    Returns:
        Whether any was taken from us.
    """
    lost = [number for number in STOPPING if signal.getsignal(number) is not _note]
    for number in lost:
        signal.signal(number, _note)
    return bool(lost)


def requested() -> int | None:
    """The number of the first signal that asked for a stop, or None."""
    return _requests.first


def reset() -> None:
    """Forget what came (a new run in the same process)."""
    global _requests
    _requests = _Requests()
    if _wakeup is not None:
        os.write(_wakeup[1], _FORGET)  # in the pipe, so behind the signals it shall forget


@contextlib.contextmanager
def inherited_blocked(number: signal.Signals) -> Iterator[None]:
    """Processes started in this block begin with a signal blocked, and find it when they ask.

    Else one that comes between a worker's fork and `worker_signals` ends the worker. This process
    still gets it, afterwards or by another of its threads.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {number})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def worker_signals() -> None:
    """Make this process a data worker: it ends with its parent and not before.

    SIGINT and SIGUSR1, which a terminal or a scheduler sends to the whole group, are ignored. A
    SIGTERM from the parent ends it at once, one from anybody else after `GRACE` seconds. Call it
    in the worker (`worker_init_fn`).
    """
    reset()
    for number in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    # Blocked here and in all threads to come, so that only the thread below ever receives it.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_leave_with, args=(os.getppid(),), daemon=True).start()


def _leave_with(parent: int) -> None:
    deadline = float("inf")
    while os.getppid() == parent and time.monotonic() < deadline:
        received = signal.sigtimedwait({signal.SIGTERM}, 1.0)
        if received is None:
            continue
        if received.si_pid == parent:  # a loader that ends its workers; no failure
            os._exit(0)
        deadline = min(deadline, time.monotonic() + GRACE)
    os._exit(_TERMINATED)


def _note(number: int, _: FrameType | None) -> None:
    if _requests.first is None:
        _requests.first = number
    if number not in _requests.told:
        _requests.told.add(number)
        _tell(f"{signal.Signals(number).name}: saving at the end of this step, then stopping")
    if number == signal.SIGINT:
        _requests.interrupts += 1
        if _requests.interrupts > 1:
            os._exit(_INTERRUPTED)
        _tell("once more leaves at once, without saving")


def _tell(text: str) -> None:
    # `print` in a handler fails if the signal came in the middle of another print.
    with contextlib.suppress(OSError):
        os.write(2, f"\n{text}\n".encode())


# Python runs handlers in the main thread between byte codes, so not during a long call of C++ (the
# backward pass of a large net). The second Ctrl-C has to work there too: the interpreter writes the
# number of each signal to a pipe at once, which a thread reads.


def _watch_interrupts() -> None:
    global _wakeup
    if _wakeup is not None:
        return
    _wakeup = read, write = os.pipe()
    os.set_blocking(write, False)
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    threading.Thread(target=_count_interrupts, args=(read,), daemon=True).start()


def _count_interrupts(read: int) -> None:
    count = 0
    while received := os.read(read, 1):
        if received == _FORGET:
            count = 0
        count += received[0] == signal.SIGINT
        if count > 1:
            os._exit(_INTERRUPTED)


def _forget_pipe() -> None:
    """A child shares the pipe: its own signals would be counted as ours."""
    global _wakeup
    if _wakeup is not None:
        signal.set_wakeup_fd(-1)
        for fd in _wakeup:
            os.close(fd)
        _wakeup = None


os.register_at_fork(after_in_child=_forget_pipe)
