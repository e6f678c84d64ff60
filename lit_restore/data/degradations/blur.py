"""Blur that is the same everywhere in the image: Gaussian, and out of focus."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lit_restore.data.degradations.base import (
    Degradation,
    require_range,
    require_within,
    uniform,
    with_noise,
)
from lit_restore.ops.blur import convolve, convolve_separable, disk_kernel, gaussian_kernel

_CUT = 4.0
"""Standard deviations at which a Gaussian kernel ends; 6e-5 of it lies outside."""


class GaussianBlur(Degradation):
    """Gaussian blur of standard deviation ~ U[sigma_min, sigma_max] pixels, and noise.

    Args:
        sigma_min: lowest standard deviation of the kernel, pixels; 0 leaves the image sharp.
        sigma_max: highest standard deviation, pixels, to 50.
        noise: standard deviation of the white noise added afterwards, in image units; unclipped.

    Raises:
        UserError: widths out of order or range, or negative noise.
    """

    def __init__(self, sigma_min: float = 0.5, sigma_max: float = 3.0, noise: float = 0.0) -> None:
        require_range("sigma", sigma_min, sigma_max, least=0, most=50)
        require_within("noise", noise, least=0, most=1)
        super().__init__(sigma_min=sigma_min, sigma_max=sigma_max, noise=noise)
        self.sigma_min, self.sigma_max, self.noise = sigma_min, sigma_max, noise

    def __call__(self, image: Tensor, generator: torch.Generator) -> Tensor:
        """(C, H, W) → (C, H, W); the image beyond its borders is its mirror image."""
        # The kernel's length is that of the widest, so that nothing waits for the device.
        radius = max(1, math.ceil(_CUT * self.sigma_max))
        kernel = gaussian_kernel(uniform(self.sigma_min, self.sigma_max, generator), radius)
        return with_noise(convolve_separable(image, kernel.to(image)), self.noise, generator)


class DefocusBlur(Degradation):
    """Out of focus: a disk of radius ~ U[radius_min, radius_max] pixels, and noise.

    Args:
        radius_min: lowest radius of the disk, pixels; below one half the image stays sharp.
        radius_max: highest radius, pixels, to 50.
        noise: standard deviation of the white noise added afterwards, in image units; unclipped.

    Raises:
        UserError: radii out of order or range, or negative noise.
    """

    def __init__(
        self, radius_min: float = 1.0, radius_max: float = 5.0, noise: float = 0.0
    ) -> None:
        require_range("radius", radius_min, radius_max, least=0.1, most=50)
        require_within("noise", noise, least=0, most=1)
        super().__init__(radius_min=radius_min, radius_max=radius_max, noise=noise)
        self.radius_min, self.radius_max, self.noise = radius_min, radius_max, noise

    def __call__(self, image: Tensor, generator: torch.Generator) -> Tensor:
        """(C, H, W) → (C, H, W); the image beyond its borders is its mirror image."""
        kernel = disk_kernel(float(uniform(self.radius_min, self.radius_max, generator)))
        return with_noise(convolve(image, kernel.to(image)), self.noise, generator)
