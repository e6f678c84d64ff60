"""Positions → decoded, cropped and flipped samples: the datasets behind the loaders."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset

from lit_restore.data.batch import Refusal, Sample
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
    image, degraded = sample.image, sample.degraded
    if not image.size and augmentation.crop is not None:
        raise UserError("holds no image to crop; set data.crop to null")
    if augmentation.crop is not None:
        image, degraded = random_crop(image, degraded, augmentation.crop, draw)
    mirror = augmentation.flip and bool(draw.integers(2))
    turns = int(draw.integers(4)) if augmentation.rotate else 0
    image = _turn(image, mirror, turns)
    degraded = None if degraded is None else _turn(degraded, mirror, turns)
    return replace(sample, image=image, degraded=degraded)


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
            image, degraded = sample.image, sample.degraded
            if not image.size and self.crop is not None:
                raise UserError("holds no image to crop; set data.val_crop to null")
            if self.crop is not None:
                image, degraded = centre_crop(image, degraded, self.crop)
        except UserError as error:
            return Refusal(error.message, error.where or self.source.where(index))
        weight = float(position < len(self.source))
        return replace(sample, position=position, image=image, degraded=degraded, weight=weight)


Pixels = npt.NDArray[np.uint8]


def random_crop(
    image: Pixels, degraded: Pixels | None, size: int, draw: np.random.Generator
) -> tuple[Pixels, Pixels | None]:
    """The same random window of a clean image and of its degraded twin.

    Args:
        image: (H, W, 3).
        degraded: (H / s, W / s, 3) for a whole scale s, or None.
        size: side of the window in `image`; a multiple of s.
        draw: draws the place, on the coarser grid.

    Raises:
        UserError: the image is smaller than the window, or the pair is not aligned.
    """
    scale = _scale(image, degraded, size)
    height, width = image.shape[0] // scale, image.shape[1] // scale
    side = size // scale
    top = int(draw.integers(height - side + 1))
    left = int(draw.integers(width - side + 1))
    return _window(image, degraded, top, left, side, scale)


def centre_crop(image: Pixels, degraded: Pixels | None, size: int) -> tuple[Pixels, Pixels | None]:
    """The middle window of a clean image and of its degraded twin; as `random_crop`."""
    scale = _scale(image, degraded, size)
    side = size // scale
    top = (image.shape[0] // scale - side) // 2
    left = (image.shape[1] // scale - side) // 2
    return _window(image, degraded, top, left, side, scale)


def _scale(image: Pixels, degraded: Pixels | None, size: int) -> int:
    height, width = image.shape[:2]
    if min(height, width) < size:
        raise UserError(f"{width}x{height} is smaller than the {size} crop; lower the crop")
    if degraded is None:
        return 1
    scale: int = height // max(1, degraded.shape[0])
    if scale < 1 or degraded.shape[:2] != (height // scale, width // scale) or size % scale:
        low = f"{degraded.shape[1]}x{degraded.shape[0]}"
        raise UserError(
            f"the degraded image is {low} for {width}x{height}: "
            f"no whole scale that divides the {size} crop"
        )
    return scale


def _window(
    image: Pixels, degraded: Pixels | None, top: int, left: int, side: int, scale: int
) -> tuple[Pixels, Pixels | None]:
    rows = slice(top * scale, (top + side) * scale)
    columns = slice(left * scale, (left + side) * scale)
    low = None if degraded is None else degraded[top : top + side, left : left + side]
    return image[rows, columns], low


def _turn(image: Pixels, mirror: bool, turns: int) -> Pixels:
    """Mirrored left–right, then turned by quarters counter-clockwise; may be a view."""
    if not image.size or (not mirror and not turns):
        return image  # copied once, into its batch
    # PyTorch moves whole pixels where NumPy copies byte by byte: up to ten times as fast.
    planes = torch.from_numpy(np.require(image, requirements="W")).permute(2, 0, 1)[None]
    planes = planes.flip(-1) if mirror else planes
    turned = torch.rot90(planes, turns, (-2, -1)) if turns else planes
    return np.ascontiguousarray(turned[0].permute(1, 2, 0).numpy())
