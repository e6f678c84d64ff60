"""Through the pictures of an evaluation: noise, methods, PNG, numbers, one row each."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from lit_restore.errors import UserError
from lit_restore.evaluation.methods import Method
from lit_restore.evaluation.metrics import Values
from lit_restore.evaluation.protocols import Protocol
from lit_restore.evaluation.rows import Row, RowId, RowWriter, reason_of
from lit_restore.evaluation.scoring import (
    add_noise,
    png_name,
    read_output,
    scores,
    truth_of,
    write_output,
)
from lit_restore.evaluation.sources import Item
from lit_restore.io.quantise import from_pixels

_WARM_UP, _WARM_UP_SIDE = 3, 128


@dataclass(frozen=True)
class _Clean:
    key: str
    image: Tensor
    truth: Values


class Loop:
    """Leaves a row for everything that is not done yet.

    Args:
        out: the run folder.
        protocol: the noise levels and the columns.
        methods: applied to each noisy picture.
        seeds: of the noise.
        batch: the most pictures (of one shape) in one call of a method.
        background: a colour to lay transparent pictures on.
        writer: takes the rows.
        done: rows that there are already.
    """

    def __init__(
        self,
        *,
        out: Path,
        protocol: Protocol,
        methods: Sequence[Method],
        seeds: Sequence[int],
        batch: int,
        background: str | None,
        writer: RowWriter,
        done: set[RowId],
    ) -> None:
        self.out, self.protocol, self.methods = out, protocol, methods
        self.seeds, self.batch, self.background = seeds, batch, background
        self.writer, self.done = writer, done
        self.cold = any(m.network is not None and _on_gpu(m.network) for m in methods)

    def run(self, items: Sequence[Item]) -> None:
        """All pictures, in the order of their keys."""
        groups = _groups(items, self.batch, self.background)
        with tqdm(total=len(items), unit="picture", disable=None, leave=False) as bar:
            for group in groups:
                if any(row.id not in self.done for item in group for row in self._wanted(item.key)):
                    self._group(group)
                bar.update(len(group))

    def _wanted(self, key: str) -> Iterator[Row]:
        for seed in self.seeds:
            for sigma in self.protocol.sigmas:
                for method in self.methods:
                    yield Row(key=key, method=method.name, seed=seed, sigma=sigma)

    def _group(self, group: Sequence[Item]) -> None:
        pictures = []
        for item in group:
            try:
                picture = item.picture(self.background)
            except UserError as error:
                for row in self._wanted(item.key):
                    self._add(dataclasses.replace(row, error=reason_of(error)))
                continue
            clean = from_pixels(picture.pixels)
            pictures.append(_Clean(item.key, clean, truth_of(picture)))
        if not pictures:
            return
        for seed in self.seeds:
            for sigma in self.protocol.sigmas:
                self._level(pictures, seed, sigma)

    def _level(self, pictures: Sequence[_Clean], seed: int, sigma: float) -> None:
        level = sigma / 255
        noisy = torch.cat([add_noise(p.image, level, seed=seed, key=p.key) for p in pictures])
        height, width = noisy.shape[-2:]
        for method in self.methods:
            rows = [
                Row(
                    key=picture.key,
                    method=method.name,
                    seed=seed,
                    sigma=sigma,
                    width=width,
                    height=height,
                )
                for picture in pictures
            ]
            if all(row.id in self.done for row in rows):
                continue
            self._apply(method, noisy, level, rows, [picture.truth for picture in pictures])

    def _apply(
        self, method: Method, noisy: Tensor, level: float, rows: list[Row], truths: list[Values]
    ) -> None:
        try:
            if method.channels not in (None, noisy.shape[1]):
                raise UserError(_other_channels(noisy.shape[1], method))
            self._warm_up(noisy, level)
            with _counted(method.network) as counter:
                estimate, seconds = _timed(method, noisy, level)
        except (UserError, RuntimeError, ValueError, MemoryError) as error:
            for row in rows:
                self._add(dataclasses.replace(row, error=reason_of(error)))
            return
        nfe = None if method.network is None else counter.calls
        for i, (row, truth) in enumerate(zip(rows, truths, strict=True)):
            spent = seconds / len(rows) if method.timed else None
            timed = dataclasses.replace(row, nfe=nfe, seconds=spent)
            self._add(self._measured(timed, estimate[i : i + 1], truth))

    def _measured(self, row: Row, output: Tensor, truth: Values) -> Row:
        name = png_name(row)
        try:
            write_output(self.out, name, output)
            pixels, sha256 = read_output(self.out / name)
        except UserError as error:
            return dataclasses.replace(row, error=reason_of(error), nfe=None, seconds=None)
        metrics, blanks = scores(self.protocol, pixels, truth)
        return dataclasses.replace(row, metrics=metrics, blanks=blanks, png=name, sha256=sha256)

    def _add(self, row: Row) -> None:
        if row.id not in self.done:
            self.done.add(row.id)
            self.writer.add(row)

    def _warm_up(self, noisy: Tensor, level: float) -> None:
        """On a GPU the first calls choose kernels; they are not what a picture costs."""
        if not self.cold:
            return
        self.cold = False
        small = noisy[..., :_WARM_UP_SIDE, :_WARM_UP_SIDE]
        for method in self.methods:
            if method.network is not None:
                for _ in range(_WARM_UP):
                    method.restore(small, level)


def _groups(items: Sequence[Item], batch: int, background: str | None) -> list[list[Item]]:
    """Pictures of one shape in batches; what cannot be read stays alone.

    The batches depend on the data only, not on what is done already: resumed or not, a picture
    meets the same neighbours.
    """
    if batch == 1:
        return [[item] for item in items]
    buckets: dict[object, list[Item]] = {}
    for item in items:
        try:
            shape: object = item.picture(background).pixels.shape
        except UserError:
            shape = item.key
        buckets.setdefault(shape, []).append(item)
    return [b[i : i + batch] for b in buckets.values() for i in range(0, len(b), batch)]


def _timed(method: Method, noisy: Tensor, level: float) -> tuple[Tensor, float]:
    start = time.perf_counter()
    estimate = method.restore(noisy, level)
    if estimate.is_cuda:
        torch.cuda.synchronize(estimate.device)
    return estimate, time.perf_counter() - start


@dataclass
class _Counter:
    calls: int = 0


@contextlib.contextmanager
def _counted(network: nn.Module | None) -> Iterator[_Counter]:
    """Counts the network's evaluations."""
    counter = _Counter()

    def count(*_: object) -> None:
        counter.calls += 1

    if network is None:
        yield counter
        return
    handle = network.register_forward_hook(count)
    try:
        yield counter
    finally:
        handle.remove()


def _other_channels(found: int, method: Method) -> str:
    """Converting it here would be another protocol; what to do about it is said instead."""
    kind, wanted = ("grey" if n == 1 else "RGB" for n in (found, method.channels))
    return (
        f"is {kind}, the network takes {wanted} pictures; save it as {wanted}, or choose others "
        "with --keys"
    )


def _on_gpu(network: nn.Module) -> bool:
    return any(parameter.is_cuda for parameter in network.parameters())
