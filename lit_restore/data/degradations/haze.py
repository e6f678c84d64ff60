"""Haze: light lost on the way from the scene, and the sky's light in its place."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lit_restore.data.degradations.base import Degradation, require_range, uniform

_WAVES = 5


class Haze(Degradation):
    """I = J t + A (1 - t), t = exp(-β d) (Koschmieder; He et al. 2009, eqs. 1 and 3).

    The depth d is a smooth random field that fills [0, 1], the light A is gray. The defaults span
    the densities of RESIDE's training images (Li et al. 2019, arXiv 1712.04143).

    Args:
        beta_min: lowest density; the farthest point keeps exp(-β) of its light.
        beta_max: highest density, to 20.
        light_min: lowest light of the sky, in image units.
        light_max: highest light of the sky, to 1.

    Raises:
        UserError: an option out of range or of order.
    """

    def __init__(
        self,
        beta_min: float = 0.6,
        beta_max: float = 1.8,
        light_min: float = 0.7,
        light_max: float = 1.0,
    ) -> None:
        require_range("beta", beta_min, beta_max, least=0, most=20)
        require_range("light", light_min, light_max, least=0, most=1)
        super().__init__(
            beta_min=beta_min, beta_max=beta_max, light_min=light_min, light_max=light_max
        )
        self.beta_min, self.beta_max = beta_min, beta_max
        self.light_min, self.light_max = light_min, light_max

    def __call__(self, image: Tensor, generator: torch.Generator) -> Tensor:
        """(C, H, W) → (C, H, W), in [0, 1]."""
        beta = uniform(self.beta_min, self.beta_max, generator)
        light = uniform(self.light_min, self.light_max, generator)
        depth = smooth_field(image.shape[-2], image.shape[-1], generator)
        return hazy(image, torch.exp(-beta * depth).to(image), light.to(image))


def hazy(image: Tensor, transmission: Tensor, light: Tensor) -> Tensor:
    """J t + A (1 - t), of J (C, H, W), t (H, W) and A, a scalar or (C, 1, 1)."""
    return image * transmission + light * (1 - transmission)


def smooth_field(height: int, width: int, generator: torch.Generator) -> Tensor:
    """A random field of few waves, its least value 0 and its greatest 1.

    The sum of all products of a cosine down and one across with fewer than 5 half waves each,
    amplitudes normal with deviation 1 / (1 + squared number of half waves).

    Returns:
        (height, width) float32 on the generator's device; 0 where it has but one value.
    """
    device = generator.device
    count = torch.arange(_WAVES, device=device, dtype=torch.float32)
    amplitude = torch.randn(_WAVES, _WAVES, generator=generator, device=device)
    amplitude = amplitude / (1 + count[:, None] ** 2 + count**2)
    down, across = (
        torch.cos(math.pi * count[:, None] * (torch.arange(n, device=device) + 0.5) / n)
        for n in (height, width)
    )
    field = down.T @ amplitude @ across
    field = field - field.min()
    return field / field.max().clamp(min=torch.finfo(field.dtype).tiny)
