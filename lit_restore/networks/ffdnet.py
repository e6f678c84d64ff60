"""FFDNet: a plain stack of convolutions at half resolution, told the noise level.

Written from the description in Zhang, Zuo, Zhang, "FFDNet: Toward a Fast and Flexible Solution
for CNN based Image Denoising", IEEE TIP 2018, arXiv 1710.04026, section III. The comparison row
of the denoiser's tables; `weights.foreign` loads the published weights into it.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lit_restore.errors import UserError
from lit_restore.networks.base import Network, noise_map, require_counts


class FFDNet(Network):
    """Denoiser: pixel-unshuffle by 2, noise map, `depth` 3x3 convolutions with ReLU, shuffle back.

    The estimate is the image itself, not a residual. The defaults are the colour network; the
    gray one has channels=1, width=64, depth=15.

    Args:
        channels: channels of the image.
        width: channels of the hidden layers.
        depth: number of convolutions, at least 2.

    Raises:
        UserError: a number is not positive, or `depth` is below 2.
    """

    multiple = 2

    def __init__(self, channels: int = 3, width: int = 96, depth: int = 12) -> None:
        super().__init__()
        require_counts(channels=channels, width=width, depth=depth)
        if depth < 2:
            raise UserError(f"{depth} is below 2, the first and the last layer", where="depth")
        self.channels = channels
        pixels = 4 * channels
        widths = [pixels + 1, *[width] * (depth - 1), pixels]
        self.body = nn.ModuleList(
            nn.Conv2d(a, b, 3, padding=1) for a, b in itertools.pairwise(widths)
        )

    def blocks(self) -> list[nn.Module]:
        """The convolutions."""
        return list(self.body)

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Estimate the clean images.

        Args:
            x: noisy images (B, channels, H, W), range [0, 1] before the noise, H and W even.
            sigma: noise levels (B,), in the same units.

        Returns:
            (B, channels, H, W), not clipped.
        """
        x = F.pixel_unshuffle(x, 2)
        x = torch.cat([x, noise_map(sigma, x)], dim=1)
        for layer in self.body[:-1]:
            x = F.relu(layer(x))
        return F.pixel_shuffle(self.body[-1](x), 2)
