"""Generators that run side by side, each in a process of its own, and what they yield in one."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Literal, TypeVar

from lit_restore.errors import LitRestoreError, RankLost
from lit_restore.io.signals import worker_signals

T = TypeVar("T")
R = TypeVar("R")

_ITEM, _ERROR, _END = "item", "error", "end"


def merged(
    make: Callable[[T], Iterator[R]], tasks: Sequence[T], *, start: Literal["fork", "spawn"]
) -> Iterator[R]:
    """What `make(task)` yields for every task, as it comes.

    One task runs in this process, several each in their own. When the caller stops, or one of them
    fails, all are ended at once; they end with this process in any case.

    Args:
        make: can be pickled.
        tasks: can be pickled.
        start: how the processes begin; "spawn" where they use CUDA.

    Raises:
        RankLost: a process was killed.
    """
    if len(tasks) < 2:
        for task in tasks:
            yield from make(task)
        return
    context = get_context("fork") if start == "fork" else get_context("spawn")
    processes: dict[Connection, BaseProcess] = {}
    try:
        for task in tasks:
            ours, theirs = context.Pipe(duplex=False)
            process = context.Process(target=_run, args=(make, task, theirs))
            process.start()
            processes[ours] = process
            theirs.close()  # so that its end is seen when the process dies
        open_ends = set(processes)
        while open_ends:
            for end in wait(list(open_ends)):
                assert isinstance(end, Connection)
                kind, value = _received(end)
                if kind == _ITEM:
                    yield value  # type: ignore[misc]
                elif kind == _ERROR:
                    assert isinstance(value, BaseException)
                    raise value
                else:
                    open_ends.remove(end)
    finally:
        for started in processes.values():
            started.terminate()
        for end, started in processes.items():
            started.join()
            end.close()


def _received(end: Connection) -> tuple[str, object]:
    try:
        message: tuple[str, object] = end.recv()
    except (EOFError, ConnectionResetError):
        raise RankLost(
            "a process died (killed, or out of memory?); "
            "run the same command again, or with fewer --workers"
        ) from None
    return message


def _run(make: Callable[[T], Iterator[R]], task: T, end: Connection) -> None:
    """The whole life of a process."""
    worker_signals()
    try:
        for item in make(task):
            end.send((_ITEM, item))
        end.send((_END, None))
    except BaseException as error:
        if not isinstance(error, LitRestoreError | OSError):
            error.add_note(traceback.format_exc())  # the traceback itself does not travel
        end.send((_ERROR, error))
