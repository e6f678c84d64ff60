"""One process's share of encoding: pictures read ahead, encoded in batches, written as shards."""

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
import numpy.typing as npt
import torch
from torch import Tensor

from lit_restore.data.encode import Packed
from lit_restore.data.latents import LatentInfo
from lit_restore.data.manifest import Shard
from lit_restore.data.memory import memory_is_short
from lit_restore.data.packing_folder import ShardDraft
from lit_restore.data.pixels import adm_square
from lit_restore.data.reader import Source
from lit_restore.errors import UserError
from lit_restore.io import arrays
from lit_restore.weights.autoencoder import Autoencoder, load_autoencoder

Pixels = npt.NDArray[np.uint8]
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


@dataclass(frozen=True)
class _Square:
    """A picture ready to be encoded."""

    key: str
    where: str
    label: int | None
    pixels: Pixels
    """(size, size, 3)."""


def encode_part(
    part: Part,
    *,
    source: Source,
    names: Sequence[str],
    folder: Path,
    vae: Path,
    info: LatentInfo,
) -> Iterator[int | Made]:
    """Make shards of latents, one after the other.

    Args:
        part: which, and where.
        source: the pictures.
        names: file names of all shards to be made, one a shard of `source`.
        folder: where they go.
        vae: folder of the autoencoder.
        info: what is made.

    Yields:
        The number of pictures encoded since the last time, and each finished shard.
    """
    read = _SquareReader(source, info.size)
    starts = np.concatenate([[0], np.cumsum(source.counts)])
    with _settled(part.device), ThreadPoolExecutor(part.readers) as pool:
        model = load_autoencoder(vae, device=part.device, dtype=getattr(torch, info.compute))
        for number in part.numbers:
            indices = range(int(starts[number]), int(starts[number + 1]))
            path = folder / names[number]
            batches = _ahead(pool, read, indices, size=info.batch)
            yield from _write(number, path, (encoded(b, model, info) for b in batches))


def encoded(batch: Sequence[_Square], model: Autoencoder, info: LatentInfo) -> list[Packed]:
    """Pictures as the members of a shard: `.npy` of `info.shape`, `.cls`.

    Raises:
        UserError: a number is not finite, or too large as it is stored; or memory is short.
    """
    pixels = torch.from_numpy(np.stack([square.pixels for square in batch]))
    images = pixels.permute(0, 3, 1, 2).to(model.device).contiguous().float() / 255
    try:
        views = [torch.stack(model.moments(images), 1)]
        if info.mirrored:
            views.append(torch.stack(model.moments(images.flip(-1)), 1))
    except (RuntimeError, MemoryError) as error:
        if not memory_is_short(error):
            raise
        raise UserError(f"not enough memory on {model.device}; lower it", where="--batch") from None
    latents = torch.stack(views, 1) if info.mirrored else views[0]
    stored = latents.to(getattr(torch, info.dtype)).cpu()
    assert stored.shape[1:] == info.shape, (stored.shape, info.shape)
    return [_packed(square, row) for square, row in zip(batch, stored, strict=True)]


def _packed(square: _Square, row: Tensor) -> Packed:
    if not row.isfinite().all():
        mend = "use --compute float32 and --dtype float32"
        raise UserError(f"its latent holds what is not finite; {mend}", where=square.where)
    label = {} if square.label is None else {"cls": str(square.label).encode()}
    return Packed(square.key, {**label, "npy": arrays.npy_bytes(row.numpy())})


class _SquareReader:
    """Reads and cuts pictures; each thread through files of its own.

    Args:
        source: the pictures.
        size: side of the squares, pixels.
    """

    def __init__(self, source: Source, size: int) -> None:
        self.source, self.size = source, size
        self.stems = [Path(str(row[0])).stem for row in source.fingerprint()]
        self.starts = np.cumsum([0, *source.counts])
        self.local = threading.local()

    def __call__(self, index: int) -> _Square:
        if not hasattr(self.local, "source"):
            self.local.source = copy.copy(self.source)  # without its open files
        sample = self.local.source.read(index)
        where = self.source.where(index)
        if not sample.image.size or sample.degraded is not None or sample.array is not None:
            reason = "is no picture alone (with or without a label); only such are encoded"
            raise UserError(reason, where=where)
        number = int(np.searchsorted(self.starts, index, side="right")) - 1
        key = sample.key.removeprefix(f"{self.stems[number]}/")
        return _Square(key, where, sample.label, adm_square(sample.image, self.size))


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
def _settled(device: str) -> Iterator[None]:
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
