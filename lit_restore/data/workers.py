"""A parallel map that keeps the order, holds little in memory and leaves no orphans."""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from typing import TypeVar

from lit_restore.errors import RankLost
from lit_restore.io.signals import worker_signals

T = TypeVar("T")
R = TypeVar("R")

_AHEAD = 3
"""Tasks in flight per worker."""


def ordered_map(function: Callable[[T], R], tasks: Iterable[T], *, workers: int) -> Iterator[R]:
    """`function` of every task, in the order of the tasks.

    Args:
        function: can be pickled; runs in forked processes, so it uses nothing that a fork breaks:
            NumPy, SciPy and Pillow, but no operation of PyTorch (its OpenMP threads hang there).
        tasks: read only as far ahead as the workers are.
        workers: processes; 1 works in this one.

    Raises:
        RankLost: a worker was killed.
    """
    if workers <= 1:
        yield from map(function, tasks)
        return
    # A fresh interpreter would import for as long as it takes to draw 200 pictures.
    context = multiprocessing.get_context("fork")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=worker_signals)
    waiting: deque[Future[R]] = deque()
    source = iter(tasks)
    try:
        while True:
            room = _AHEAD * workers - len(waiting)
            waiting.extend(pool.submit(function, task) for task in islice(source, room))
            if not waiting:
                return
            yield waiting.popleft().result()
    except BrokenProcessPool:
        raise RankLost(
            "a worker process died (killed, or out of memory?); "
            "run the same command again, or with fewer workers"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)
