"""A compact denoising U-Net that trains on a CPU.

Pixel-unshuffle moves all work to half resolution, where most of the blocks stay: in short trainings
depth there is worth more than width or a third scale. Residual blocks start as the identity (their
last convolution is zero), so that there is no need of normalisation; scales add up instead of
being concatenated. The input and output are preconditioned as in EDM (Karras et al. 2022,
arXiv 2206.00364, table 1), which keeps every noise level at unit variance.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lit_restore.errors import UserError
from lit_restore.networks.base import Network, noise_map, require_counts, require_lists_of_counts

DATA_MEAN = 0.45
DATA_STD = 0.25
"""Mean and standard deviation of natural images in [0, 1], for the preconditioning."""


class ResidualBlock(nn.Module):
    """x + conv(relu(conv(x))), the identity at the start."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """(B, width, H, W) → the same shape."""
        change: Tensor = self.conv2(F.relu(self.conv1(x)))
        return x + change


class UNet(Network):
    """Denoiser D(x, σ) ≈ E[clean image | x = clean image + σ·noise].

    Args:
        channels: channels of the image.
        widths: channels of each scale, finest first.
        depths: residual blocks of each scale, on the way down and again on the way up
            (the coarsest scale has them once).
        unshuffle: side of the pixel blocks that become channels before the finest scale.

    Raises:
        UserError: a number is not positive, or `widths` and `depths` differ in length or are empty.
    """

    def __init__(
        self,
        channels: int = 3,
        widths: Sequence[int] = (32, 64),
        depths: Sequence[int] = (4, 2),
        unshuffle: int = 2,
    ) -> None:
        super().__init__()
        require_counts(channels=channels, unshuffle=unshuffle)
        require_lists_of_counts(widths=widths, depths=depths)
        if len(widths) != len(depths):
            raise UserError(
                f"needs one entry for each of widths ({len(widths)}), got {len(depths)}",
                where="depths",
            )
        self.multiple = unshuffle * 2 ** (len(widths) - 1)
        self.unshuffle = unshuffle
        pixels = channels * unshuffle**2
        self.entry = nn.Conv2d(pixels + 1, widths[0], 3, padding=1)
        steps = list(itertools.pairwise(widths))
        self.down_blocks = nn.ModuleList(_stack(w, n) for w, n in zip(widths, depths, strict=True))
        self.up_blocks = nn.ModuleList(
            _stack(w, n) for w, n in zip(widths[:-1], depths[:-1], strict=True)
        )
        self.down = nn.ModuleList(nn.Conv2d(a, b, 2, stride=2) for a, b in steps)
        self.up = nn.ModuleList(nn.ConvTranspose2d(b, a, 2, stride=2) for a, b in steps)
        self.exit = nn.Conv2d(widths[0], pixels, 3, padding=1)
        nn.init.zeros_(self.exit.weight)
        nn.init.zeros_(self.exit.bias)  # type: ignore[arg-type]

    def blocks(self) -> list[nn.Module]:
        """All residual blocks."""
        return [m for m in self.modules() if isinstance(m, ResidualBlock)]

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Estimate the clean images.

        Args:
            x: noisy images (B, channels, H, W), range [0, 1] before the noise; H and W multiples
                of `multiple`.
            sigma: noise levels (B,), in the same units.

        Returns:
            (B, channels, H, W), not clipped.
        """
        level = sigma.to(x).view(-1, 1, 1, 1)
        total = (level.square() + DATA_STD**2).sqrt()
        centred = x - DATA_MEAN
        change = self._features(centred / total, sigma)
        keep = (DATA_STD / total).square()
        return DATA_MEAN + keep * centred + (level * DATA_STD / total) * change

    def _features(self, x: Tensor, sigma: Tensor) -> Tensor:
        x = F.pixel_unshuffle(x, self.unshuffle)
        x = self.entry(torch.cat([x, noise_map(sigma / DATA_STD, x)], dim=1))
        skips: list[Tensor] = []
        for blocks, down in zip(self.down_blocks, self.down, strict=False):
            x = blocks(x)
            skips.append(x)
            x = down(x)
        x = self.down_blocks[-1](x)
        for blocks, up in zip(reversed(self.up_blocks), reversed(self.up), strict=True):
            x = blocks(up(x) + skips.pop())
        return F.pixel_shuffle(self.exit(x), self.unshuffle)


def _stack(width: int, depth: int) -> nn.Sequential:
    return nn.Sequential(*(ResidualBlock(width) for _ in range(depth)))
