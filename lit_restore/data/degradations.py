"""What turns a clean image into a degraded one, drawn anew for every sample.

To add one: a class here and its line in `DEGRADATIONS`; the tests run over that list.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from lit_restore.errors import UserError
from lit_restore.io import images
from lit_restore.ops.resize import imresize


class Degradation(ABC):
    """A random map from a clean image to a degraded one.

    Args:
        options: the subclass's own constructor arguments.
    """

    on_device: ClassVar[bool] = True
    """Whether it runs where the image is; otherwise the image visits the CPU."""

    def __init__(self, **options: float | int) -> None:
        self.options: dict[str, float | int] = options
        """The constructor's arguments, for fingerprints and records."""

    @abstractmethod
    def __call__(self, image: Tensor, generator: torch.Generator) -> Tensor:
        """Degrade one image.

        Args:
            image: (C, H, W) float in [0, 1]; not changed.
            generator: all randomness; on the image's device.

        Returns:
            (C, h, w), h and w being H and W over a whole scale; may leave [0, 1].
        """


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
        level = torch.rand((), generator=generator, device=generator.device)
        sigma = (self.sigma_min + (self.sigma_max - self.sigma_min) * level).to(image)
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


class Downscale(Degradation):
    """Smaller by a whole scale, MATLAB's antialiased bicubic (`ops.resize`); not clipped.

    Args:
        scale: how many times smaller, 2 to 8.

    Raises:
        UserError: a scale out of range; when called, sides that the scale does not divide.
    """

    def __init__(self, scale: int = 4) -> None:
        if not 2 <= scale <= 8:
            raise UserError(f"{scale} is not within 2 to 8", where="data.degradation.scale")
        super().__init__(scale=scale)
        self.scale = scale

    def __call__(self, image: Tensor, generator: torch.Generator) -> Tensor:
        """(C, H, W) → (C, H / scale, W / scale); overshoots [0, 1] at edges."""
        height, width = image.shape[-2:]
        if height % self.scale or width % self.scale:
            raise UserError(
                f"{width}x{height} does not divide by the scale {self.scale}; "
                "choose a crop that does",
                where="data.crop",
            )
        return imresize(image, 1 / self.scale)


DEGRADATIONS: dict[str, type[Degradation]] = {
    "GaussianNoise": GaussianNoise,
    "JpegArtifacts": JpegArtifacts,
    "Downscale": Downscale,
}
"""Short name → class."""
