"""EDSR (Lim et al. 2017, arXiv 1707.02921): residual blocks without normalisation.

All work is done at the size of the input, and a pixel shuffle enlarges at the end, so that super-
resolution by 4 costs a sixteenth of what it would at the size of the output. At scale 1 it removes
blur, noise or artefacts. What is learned is a change of the (bicubically enlarged) input, which is
not EDSR's, and trains in far fewer steps.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lit_restore.errors import UserError, require_choice
from lit_restore.networks.base import Network, require_counts


class EDSR(Network):
    """A restoration network: degraded image in, estimate of the clean one out.

    Args:
        channels: channels of the images.
        width: features.
        depth: residual blocks.
        scale: how many times larger the output is: 1, 2, 3, 4 or 8.
        block_scale: factor on each block's change of its input.
        upsampler: pixelshuffle (EDSR's, by 2 or 3 at a time), or pixelshuffledirect (one, of
            pixels; a fraction of the cost).

    Raises:
        UserError: a number is not positive, or there is no such scale or upsampler.
    """

    def __init__(
        self,
        channels: int = 3,
        width: int = 64,
        depth: int = 16,
        scale: int = 4,
        block_scale: float = 1.0,
        upsampler: str = "pixelshuffle",
    ) -> None:
        super().__init__()
        require_counts(channels=channels, width=width, depth=depth, scale=scale)
        if scale not in (1, 2, 3, 4, 8):
            raise UserError(f"{scale} is not one of 1, 2, 3, 4, 8", where="scale")
        require_choice(upsampler, ("pixelshuffle", "pixelshuffledirect"), where="upsampler")
        self.scale = scale
        direct = upsampler == "pixelshuffledirect"
        self.entry = nn.Conv2d(channels, width, 3, padding=1)
        self.body = nn.ModuleList(ResidualBlock(width, block_scale) for _ in range(depth))
        self.fuse = nn.Conv2d(width, width, 3, padding=1)
        self.upsample = nn.Sequential(*([] if direct else _upsampler(width, scale)))
        pixels = scale**2 if direct else 1
        self.exit = nn.Conv2d(width, channels * pixels, 3, padding=1)
        self.shuffle = nn.PixelShuffle(scale if direct else 1)
        nn.init.zeros_(self.exit.weight)
        nn.init.zeros_(self.exit.bias)  # type: ignore[arg-type]

    def blocks(self) -> list[nn.Module]:
        """All residual blocks."""
        return list(self.body)

    def forward(self, degraded: Tensor) -> Tensor:
        """E[clean image | degraded image].

        Args:
            degraded: (B, channels, h, w) in [0, 1].

        Returns:
            (B, channels, scale · h, scale · w), not clipped.
        """
        features = entry = self.entry(degraded - 0.5)
        for block in self.body:
            features = block(features)
        change: Tensor = self.shuffle(self.exit(self.upsample(self.fuse(features) + entry)))
        return change + self._enlarged(degraded)

    def _enlarged(self, x: Tensor) -> Tensor:
        if self.scale == 1:
            return x
        return F.interpolate(x, scale_factor=self.scale, mode="bicubic", align_corners=False)


class ResidualBlock(nn.Module):
    """x + scale · conv(relu(conv(x)))."""

    def __init__(self, width: int, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, width, H, W) → the same shape."""
        return torch.add(x, self.conv2(F.relu(self.conv1(x))), alpha=self.scale)


def _upsampler(width: int, scale: int) -> list[nn.Module]:
    """Pixel shuffles by 2, or one by 3."""
    steps = [3] if scale == 3 else [2] * int(math.log2(scale))
    layers: list[nn.Module] = []
    for step in steps:
        layers += [nn.Conv2d(width, width * step**2, 3, padding=1), nn.PixelShuffle(step)]
    return layers
