"""SqueezeNet 1.1 (Iandola et al., arXiv 1602.07360; version 1.1 of the authors' repository).

A small classifier whose features tell sets of images apart. It is only measured with, never
trained, so it is not in `NETWORKS`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_FIRES = {2: (64, 16), 3: (128, 16), 4: (128, 32), 5: (256, 32), 6: (256, 48), 7: (384, 48)}
_FIRES |= {8: (384, 64), 9: (512, 64)}
_POOLED = (3, 5)
"""Fire modules before whose successor the size is halved."""


class Fire(nn.Module):
    """Squeeze to few channels, then expand fourfold by 1x1 and fourfold by 3x3 (§3.1)."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.squeeze1x1 = nn.Conv2d(channels, squeezed, 1)
        self.expand1x1 = nn.Conv2d(squeezed, 4 * squeezed, 1)
        self.expand3x3 = nn.Conv2d(squeezed, 4 * squeezed, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) → (B, 8 · squeezed, H, W)."""
        x = F.relu(self.squeeze1x1(x))
        return F.relu(torch.cat([self.expand1x1(x), self.expand3x3(x)], 1))


class SqueezeNet(nn.Module):
    """The network up to its last fire module; the classifier (conv10) is left out.

    State-dict names are those of the Caffe layers: ``conv1``, ``fire2.squeeze1x1`` …
    """

    dimension = 512

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 3, stride=2)
        for number, (channels, squeezed) in _FIRES.items():
            self.add_module(f"fire{number}", Fire(channels, squeezed))

    def forward(self, x: Tensor) -> Tensor:
        """Images as the weights expect them, (B, 3, H, W) → means over fire9's map, (B, 512)."""
        x = _halved(F.relu(self.conv1(x)))
        for number in _FIRES:
            x = self.get_submodule(f"fire{number}")(x)
            x = _halved(x) if number in _POOLED else x
        return x.mean((2, 3))


def _halved(x: Tensor) -> Tensor:
    # Caffe rounds the size of a pooled map up.
    return F.max_pool2d(x, 3, stride=2, ceil_mode=True)
