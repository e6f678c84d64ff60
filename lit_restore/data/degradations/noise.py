"""Degradations of values alone: Gaussian noise, and what JPEG leaves."""

from __future__ import annotations

import torch
from torch import Tensor

from lit_restore.data.degradations.base import Degradation, uniform
from lit_restore.errors import UserError
from lit_restore.io import images


class GaussianNoise(Degradation):
    """Additive white Gaussian noise, x + σn, σ ~ U[sigma_min, sigma_max]; not clipped.

    Args:
        sigma_min: lowest standard deviation, in image units.
        sigma_max: highest standard deviation, in image units.

    Raises:
        UserError: levels out of order.
    """

    def __init__(self, sigma_min: float = 25 / 255, sigma_max: float = 25 / 255) -> None:
        if not 0 <= sigma_min <= sigma_max:
            raise UserError(
                f"{sigma_max} is below sigma_min {sigma_min}, or negative",
                where="data.degradation.sigma_max",
            )
        super().__init__(sigma_min=sigma_min, sigma_max=sigma_max)
        self.sigma_min, self.sigma_max = sigma_min, sigma_max

    def __call__(self, image: Tensor, generator: torch.Generator) -> Tensor:
        """(C, H, W) → (C, H, W), unbounded."""
        sigma = uniform(self.sigma_min, self.sigma_max, generator).to(image)
        noise = torch.randn(image.shape, generator=generator, device=generator.device)
        return image + sigma * noise.to(image)


class JpegArtifacts(Degradation):
    """What a JPEG of quality ~ U{quality_min, …, quality_max} leaves (colour not subsampled).

    Args:
        quality_min: lowest quality, 1 to 100.
        quality_max: highest quality, 1 to 100.

    Raises:
        UserError: qualities out of order.
    """

    on_device = False

    def __init__(self, quality_min: int = 10, quality_max: int = 60) -> None:
        if not 1 <= quality_min <= quality_max <= 100:
            raise UserError(
                f"{quality_max} is below quality_min {quality_min}, or not within 1 to 100",
                where="data.degradation.quality_max",
            )
        super().__init__(quality_min=quality_min, quality_max=quality_max)
        self.quality_min, self.quality_max = quality_min, quality_max

    def __call__(self, image: Tensor, generator: torch.Generator) -> Tensor:
        """(C, H, W) with 1 or 3 channels → the same shape, multiples of 1/255 in [0, 1]."""
        span = (self.quality_min, self.quality_max + 1)
        quality = int(torch.randint(*span, (), generator=generator, device=generator.device))
        pixels = (image.detach().cpu() * 255).round().clamp(0, 255).to(torch.uint8)
        data = images.jpeg_bytes(pixels.permute(1, 2, 0).contiguous().numpy(), quality)
        decoded = torch.from_numpy(images.read_picture(data, name="image").pixels.copy())
        return decoded.permute(2, 0, 1).to(image) / 255
