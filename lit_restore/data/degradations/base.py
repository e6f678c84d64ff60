"""What every degradation is: a random map whose options are JSON and whose draws are given."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from lit_restore.errors import UserError

KEY = "data.degradation"
"""Where a config names the degradation."""


class Degradation(ABC):
    """A random map from a clean image to a degraded one.

    Args:
        options: the subclass's own constructor arguments.
    """

    on_device: ClassVar[bool] = True
    """Whether it runs where the image is; otherwise the image visits the CPU."""
    multiple: int = 1
    """Sides of the image must be multiples of it."""

    def __init__(self, **options: object) -> None:
        self.options: dict[str, object] = options
        """The constructor's arguments as JSON values, for fingerprints and records."""

    @abstractmethod
    def __call__(self, image: Tensor, generator: torch.Generator) -> Tensor:
        """Degrade one image.

        Args:
            image: (C, H, W) float in [0, 1]; not changed.
            generator: all randomness; on the image's device.

        Returns:
            (C, h, w), h and w being H and W or these over a scale; may leave [0, 1].
        """


def uniform(low: float, high: float, generator: torch.Generator) -> Tensor:
    """One number of U[low, high), a scalar on the generator's device."""
    share = torch.rand((), generator=generator, device=generator.device)
    return low + (high - low) * share


def with_noise(image: Tensor, sigma: float, generator: torch.Generator) -> Tensor:
    """`image` and white Gaussian noise of standard deviation `sigma`, in image units; unclipped."""
    if not sigma:
        return image
    noise = torch.randn(image.shape, generator=generator, device=generator.device)
    return image + sigma * noise.to(image)


def require_range(name: str, low: float, high: float, *, least: float, most: float) -> None:
    """Refuse a range of options `{name}_min`, `{name}_max` that is out of order or of bounds.

    Raises:
        UserError: not least ≤ low ≤ high ≤ most.
    """
    if not low <= high:
        raise UserError(f"{high} is below {name}_min {low}", where=f"{KEY}.{name}_max")
    if not (least <= low and high <= most):
        end = "min" if not least <= low else "max"
        value = low if end == "min" else high
        raise UserError(f"{value} is not within {least} to {most}", where=f"{KEY}.{name}_{end}")


def require_within(name: str, value: float, *, least: float, most: float) -> None:
    """Refuse an option out of its bounds.

    Raises:
        UserError: not least ≤ value ≤ most.
    """
    if not least <= value <= most:
        raise UserError(f"{value} is not within {least} to {most}", where=f"{KEY}.{name}")
