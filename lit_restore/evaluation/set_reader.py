"""Pictures of a set on their way to a feature network: in order, a few at a time."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from lit_restore.data.packing_progress import Progress
from lit_restore.errors import UserError
from lit_restore.evaluation.features import FeatureNetwork
from lit_restore.evaluation.set_pictures import PictureSet
from lit_restore.io import memory
from lit_restore.io.quantise import Pixels

_BATCH = 32
_HELD = 1 << 24
"""Numbers of pictures that wait for others of their size."""
_EVERY = 30.0
"""Seconds between lines on progress where there is no terminal."""

Size: TypeAlias = tuple[int, int]
"""(H, W)."""
_Waiting: TypeAlias = dict[Size, list[tuple[int, Pixels]]]
"""Size → pictures of it, each with its row among the features."""


@dataclass(kw_only=True)
class Measured:
    """One set, as it was read."""

    pictures: PictureSet
    features: Tensor
    """(count, dimension) float32, in the order of the set."""
    count: int = 0
    """Pictures that were measured."""
    sha256: str = ""
    """Over size and pixels of each of them, in order."""
    sizes: set[Size] = field(default_factory=set)
    """(H, W)."""


class SetReader:
    """Gives pictures to a feature network; keeps what could not be read.

    Args:
        network: to check that sizes of pictures do not matter to it.
        device: where it computes.
        max_bad: damaged pictures, in all sets together, that may be left out.
        progress: of all sets.
    """

    def __init__(
        self, network: FeatureNetwork, device: torch.device, max_bad: int, progress: Progress
    ) -> None:
        self.network, self.device, self.max_bad = network, device, max_bad
        self.failed: dict[str, str] = {}
        self._progress, self._told = progress, time.monotonic()
        memory.keep_freed()
        self._prepared: dict[Size, tuple[int, ...]] = {}

    def read(self, pictures: PictureSet, chosen: Sequence[int]) -> Measured:
        """The features of all chosen pictures.

        They go into one tensor made before: small ones, kept between pictures that come and go,
        would leave holes in memory as large as all pictures together.

        Raises:
            UserError: too many are damaged, or sizes differ where the network does not resize.
        """
        features = torch.empty(len(chosen), self.network.dimension)
        found, digest = Measured(pictures=pictures, features=features), hashlib.sha256()
        waiting: _Waiting = {}
        held = 0
        for index in chosen:
            pixels = self._picture(pictures, index)
            self._progress.step()
            self.say(pictures.name)
            if pixels is None:
                continue
            size = (pixels.shape[0], pixels.shape[1])
            self._check_size(size, pictures.where(index))
            digest.update(np.array(size, "<i8").tobytes() + np.ascontiguousarray(pixels).tobytes())
            group = waiting.setdefault(size, [])
            group.append((found.count, pixels))
            found.count += 1
            found.sizes.add(size)
            held += pixels.size
            if len(group) == _BATCH:
                held -= sum(p.size for _, p in group)
                self._take(waiting.pop(size), features)
            elif held > _HELD:
                self._take_all(waiting, features)
                held = 0
        self._take_all(waiting, features)
        found.features, found.sha256 = features[: found.count], digest.hexdigest()
        return found

    def say(self, text: str) -> None:
        """What is being done: beside the bar, or, of a long job without a terminal, on a line."""
        self._progress.bar.set_description(text, refresh=False)
        if time.monotonic() - self._told > _EVERY:
            self._progress.say(text)
            self._told = time.monotonic()

    def _picture(self, pictures: PictureSet, index: int) -> Pixels | None:
        try:
            return pictures.read(index)
        except UserError as error:
            where = pictures.where(index)  # the error may name a whole shard
            self.failed[where] = error.message
            if len(self.failed) > self.max_bad:
                count = f"{len(self.failed)} damaged, " if self.max_bad else ""
                told = f"{error.message}; {count}more than --max_bad {self.max_bad}"
                raise UserError(told, where=where) from None
            return None

    def _check_size(self, size: Size, where: str) -> None:
        """All pictures must look alike to the network: what it reads has one shape."""
        if size in self._prepared:
            return
        shape = tuple(self.network.prepare(torch.zeros(1, 3, *size)).shape[1:])
        for other, known in self._prepared.items():
            if known != shape:
                told = f"is {_size(size)} where others are {_size(other)}, and the features "
                told += f"{self.network.name} resize nothing; make all pictures one size"
                raise UserError(told, where=where)
        self._prepared[size] = shape

    def _take_all(self, waiting: _Waiting, features: Tensor) -> None:
        for size in sorted(waiting):
            self._take(waiting.pop(size), features)

    def _take(self, group: list[tuple[int, Pixels]], features: Tensor) -> None:
        pixels = torch.from_numpy(np.stack([pixels for _, pixels in group])).permute(0, 3, 1, 2)
        rows = torch.tensor([row for row, _ in group])
        features[rows] = self.network(pixels.to(self.device).float() / 255)


def listed_sizes(sizes: set[Size]) -> str:
    """Sizes of pictures as a line names them."""
    if len(sizes) <= 3:
        return ", ".join(_size(size) for size in sorted(sizes)) or "none"
    low, high = min(sizes), max(sizes)
    return f"of {len(sizes)} sizes from {_size(low)} to {_size(high)}"


def _size(size: Size) -> str:
    return f"{size[1]}x{size[0]}"
