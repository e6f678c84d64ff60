"""Positions → decoded, cropped and flipped samples: the datasets behind the loaders."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch.utils.data import Dataset

from lit_restore.data.batch import Refusal, Sample
from lit_restore.data.crops import centre_crop, random_crop, turned
from lit_restore.data.decode import Window
from lit_restore.data.order import Order
from lit_restore.data.reader import Source
from lit_restore.errors import UserError
from lit_restore.seeding import numpy_generator

_TRIES = 16


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """What is done to a training sample at random, by (seed, position)."""

    crop: int | None
    """Side of the square crop, pixels of the clean image; None for whole images."""
    flip: bool
    """Mirror left–right with probability one half."""
    rotate: bool
    """Turn by a random multiple of 90 degrees, and so also mirror top–bottom."""


class TrainingSamples(Dataset[Sample | Refusal]):
    """Position in the run → augmented sample.

    A sample that cannot be read is replaced by that of the next position, so that all ranks stay
    level; the replacement is told in `Sample.bad`.

    Args:
        source: where samples are read.
        order: position → index into `source`.
        augmentation: what is drawn for each sample.
        seed: the run's seed.
    """

    def __init__(
        self, source: Source, order: Order, *, augmentation: Augmentation, seed: int
    ) -> None:
        self.source = source
        self.order = order
        self.augmentation = augmentation
        self.seed = seed

    def __getitem__(self, position: int) -> Sample | Refusal:
        bad: list[tuple[str, str]] = []
        for step in range(_TRIES):
            index = self.order.index(position + step)
            try:
                sample = self.source.read(index, self._window(position))
            except UserError as error:
                bad.append((self.source.where(index), error.message))
                continue
            try:
                sample = replace(sample, position=position, bad=tuple(bad))
                return augment(sample, self.augmentation, self.seed)
            except UserError as error:
                return Refusal(error.message, self.source.where(index))
        name, reason = bad[0]
        message = f"{reason}; the next {_TRIES - 1} samples cannot be read either"
        return Refusal(message, name, unreadable=True)

    def _window(self, position: int) -> Window | None:
        """The window that `augment` will draw."""
        size = self.augmentation.crop
        if size is None:
            return None

        def needed(height: int, width: int) -> tuple[int, int, int, int]:
            if min(height, width) < size:
                return 0, 0, width, height
            draw = numpy_generator(self.seed, position, "crop")
            top = int(draw.integers(height - size + 1))
            left = int(draw.integers(width - size + 1))
            return left, top, left + size, top + size

        return needed


def augment(sample: Sample, augmentation: Augmentation, seed: int) -> Sample:
    """A sample cropped, mirrored and turned as (seed, its position) says.

    Raises:
        UserError: it is smaller than the crop, or its pair is not aligned.
    """
    draw = numpy_generator(seed, sample.position, "crop")
    if not sample.image.size and augmentation.crop is not None:
        raise UserError("holds no image to crop; set data.crop to null")
    if augmentation.crop is not None:
        sample = random_crop(sample, augmentation.crop, draw)
    mirror = augmentation.flip and bool(draw.integers(2))
    turns = int(draw.integers(4)) if augmentation.rotate else 0
    return turned(sample, mirror=mirror, turns=turns)


class OrderedSamples(Dataset[Sample | Refusal]):
    """Whole (or centre-cropped) samples in stored order; indices past the end are padding.

    Args:
        source: where samples are read.
        crop: side of the square centre crop; None for whole images.
    """

    def __init__(self, source: Source, *, crop: int | None) -> None:
        self.source = source
        self.crop = crop

    def __getitem__(self, position: int) -> Sample | Refusal:
        index = min(position, len(self.source) - 1)
        try:
            sample = self.source.read(index)
            if not sample.image.size and self.crop is not None:
                raise UserError("holds no image to crop; set data.val_crop to null")
            if self.crop is not None:
                sample = centre_crop(sample, self.crop)
        except UserError as error:
            return Refusal(error.message, error.where or self.source.where(index))
        weight = float(position < len(self.source))
        return replace(sample, position=position, weight=weight)
