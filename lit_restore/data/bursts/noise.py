"""A sensor's noise: what light itself brings, and what reading it out adds.

Brooks et al. 2019, arXiv 1811.11127, section 3.1: a measurement of the light x is normal with mean
x and variance shot · x + read. Levels are those of the Darmstadt Noise Dataset's cameras.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

LOG_SHOT = (math.log(1e-4), math.log(0.012))
"""The range, uniform, of the natural logarithm of the shot noise's variance at x = 1."""

_SLOPE, _INTERCEPT, _SPREAD = 2.18, 1.20, 0.26


def draw_noise_levels(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw (shot, read), scalars: log read = 2.18 log shot + 1.20 + N(0, 0.26²)."""
    low, high = LOG_SHOT
    u = torch.rand((), generator=generator, device=generator.device)
    z = torch.randn((), generator=generator, device=generator.device)
    log_shot = low + (high - low) * u
    log_read = _SLOPE * log_shot + _INTERCEPT + _SPREAD * z
    return log_shot.exp(), log_read.exp()


def add_noise(x: Tensor, shot: Tensor, read: Tensor, generator: torch.Generator) -> Tensor:
    """Add shot and read noise.

    Args:
        x: linear intensities in [0, 1], any shape.
        shot: variance at x = 1 of the noise that grows with the light, scalar.
        read: variance of the noise without light, scalar.
        generator: all randomness.

    Returns:
        The shape of x, unbounded.
    """
    z = torch.randn(x.shape, generator=generator, device=generator.device).to(x)
    return x + z * (shot.to(x) * x + read.to(x)).sqrt()
