"""One process's share of shards made of others: read ahead, computed in batches, written."""

from __future__ import annotations

import copy
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from lit_restore.data.batch import Sample
from lit_restore.data.encode import Packed
from lit_restore.data.manifest import Shard
from lit_restore.data.packing_folder import ShardDraft
from lit_restore.data.reader import Source

T = TypeVar("T")
R = TypeVar("R")

_BATCHES_AHEAD = 2


@dataclass(frozen=True, kw_only=True)
class Part:
    """What one process does."""

    numbers: tuple[int, ...]
    """The shards it makes."""
    device: str
    readers: int
    """Threads that read and decode."""


@dataclass(frozen=True)
class Made:
    """A shard that is finished."""

    number: int
    shard: Shard
    labelled: bool
    """Whether all its samples have a label."""


def write_parts(
    part: Part,
    source: Source,
    names: Sequence[str],
    folder: Path,
    *,
    read: Callable[[int], R],
    pack: Callable[[Sequence[R]], list[Packed]],
    batch: int,
) -> Iterator[int | Made]:
    """Make shards, one after the other.

    Args:
        part: which, and where.
        source: what they are made of.
        names: file names of all shards to be made, one a shard of `source`.
        folder: where they go.
        read: index of a sample → what `pack` wants of it; called in threads.
        pack: a batch of them as members of a shard.
        batch: samples in one call of `pack`.

    Yields:
        The number of samples made since the last time, and each finished shard.
    """
    starts = np.concatenate([[0], np.cumsum(source.counts)])
    with settled(part.device), ThreadPoolExecutor(part.readers) as pool:
        for number in part.numbers:
            indices = range(int(starts[number]), int(starts[number + 1]))
            batches = _ahead(pool, read, indices, size=batch)
            yield from _write(number, folder / names[number], (pack(b) for b in batches))


class ThreadedReader:
    """Reads samples, each thread through files of its own.

    Args:
        source: the samples.
    """

    def __init__(self, source: Source) -> None:
        self.source = source
        self.stems = [Path(str(row[0])).stem for row in source.fingerprint()]
        self.starts = np.cumsum([0, *source.counts])
        self.local = threading.local()

    def __call__(self, index: int) -> Sample:
        """The sample, its key without the shard's name."""
        if not hasattr(self.local, "source"):
            self.local.source = copy.copy(self.source)  # without its open files
        sample: Sample = self.local.source.read(index)
        number = int(np.searchsorted(self.starts, index, side="right")) - 1
        sample.key = sample.key.removeprefix(f"{self.stems[number]}/")
        return sample


def _ahead(
    pool: ThreadPoolExecutor, read: Callable[[T], R], tasks: Sequence[T], *, size: int
) -> Iterator[list[R]]:
    """`read` of all tasks in batches of `size`, the next ones being read meanwhile."""
    coming = iter(tasks)
    waiting: deque[list[Future[R]]] = deque()
    try:
        while True:
            while len(waiting) <= _BATCHES_AHEAD:
                batch = [pool.submit(read, task) for task in islice(coming, size)]
                if not batch:
                    break
                waiting.append(batch)
            if not waiting:
                return
            yield [future.result() for future in waiting.popleft()]
    finally:
        for batch in waiting:
            for future in batch:
                future.cancel()


def _write(number: int, path: Path, batches: Iterator[list[Packed]]) -> Iterator[int | Made]:
    """Write one shard under a temporary name and publish it when it is whole."""
    draft, count, labels = ShardDraft(path), 0, 0
    try:
        for batch in batches:
            count += draft.add(batch)
            labels += sum("cls" in sample.fields for sample in batch)
            yield len(batch)
        shard = draft.publish(count)
    except BaseException:
        draft.abandon()
        raise
    yield Made(number, shard, labelled=labels == count)


@contextmanager
def settled(device: str) -> Iterator[None]:
    """Whatever else would change the last bits is fixed: threads, cuDNN's choice, TF32."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1 if device == "cpu" else threads)
    try:
        with torch.backends.cudnn.flags(
            enabled=True, benchmark=False, deterministic=True, allow_tf32=False
        ):
            yield
    finally:
        torch.set_num_threads(threads)
