"""Inception-v3 as FID uses it: the network of TensorFlow's graph of 2015-12-05.

Szegedy et al., arXiv 1512.00567, §6. Against the later network of torchvision it averages without
the padding in the branches' pools, and the last block pools by maximum. It is only measured with,
never trained, so it is not in `NETWORKS`. State-dict names are those of torchvision's and of the
published weights (``Mixed_5b.branch1x1.conv.weight`` …).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Conv = tuple[int, int, int | tuple[int, int], int, int | tuple[int, int]]
"""Input channels, output channels, kernel, stride, padding."""
Branch = list[str | tuple[str, str]]
"""Names of convolutions one after the other; a pair is applied side by side."""
Pool = Literal["mean", "max", "shrink"]

_ROW: tuple[tuple[int, int], int, tuple[int, int]] = ((1, 7), 1, (0, 3))
_COLUMN: tuple[tuple[int, int], int, tuple[int, int]] = ((7, 1), 1, (3, 0))
_SHORT_ROW: tuple[tuple[int, int], int, tuple[int, int]] = ((1, 3), 1, (0, 1))
_SHORT_COLUMN: tuple[tuple[int, int], int, tuple[int, int]] = ((3, 1), 1, (1, 0))


class ConvNorm(nn.Module):
    """Convolution without bias, batch norm, ReLU."""

    def __init__(self, spec: Conv) -> None:
        super().__init__()
        channels, width, kernel, stride, padding = spec
        self.conv = nn.Conv2d(channels, width, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(width, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) → (B, width, H', W')."""
        return F.relu(self.bn(self.conv(x)))


class Mixed(nn.Module):
    """Branches side by side, the pooled one last, joined by channels.

    Args:
        convs: name → convolution.
        branches: which convolutions each branch applies.
        pool: mean and max keep the size and are followed by `branch_pool`; shrink halves it.
    """

    def __init__(self, convs: dict[str, Conv], branches: list[Branch], pool: Pool) -> None:
        super().__init__()
        for name, spec in convs.items():
            self.add_module(name, ConvNorm(spec))
        self.branches, self.pool = branches, pool

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → (B, C', H', W')."""
        outputs = [self._branch(x, branch) for branch in self.branches]
        return torch.cat([*outputs, self._pooled(x)], 1)

    def _branch(self, x: Tensor, branch: Branch) -> Tensor:
        for step in branch:
            names = (step,) if isinstance(step, str) else step
            x = torch.cat([self.get_submodule(name)(x) for name in names], 1)
        return x

    def _pooled(self, x: Tensor) -> Tensor:
        if self.pool == "shrink":
            return F.max_pool2d(x, 3, stride=2)
        if self.pool == "max":
            x = F.max_pool2d(x, 3, stride=1, padding=1)
        else:
            x = F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)
        pooled: Tensor = self.get_submodule("branch_pool")(x)
        return pooled


class FIDInceptionV3(nn.Module):
    """The whole network, up to the mean over its last map.

    `fc`, the classifier of 1008 rows, is held so that the published file fits, and not applied.
    """

    dimension = 2048

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = ConvNorm((3, 32, 3, 2, 0))
        self.Conv2d_2a_3x3 = ConvNorm((32, 32, 3, 1, 0))
        self.Conv2d_2b_3x3 = ConvNorm((32, 64, 3, 1, 1))
        self.Conv2d_3b_1x1 = ConvNorm((64, 80, 1, 1, 0))
        self.Conv2d_4a_3x3 = ConvNorm((80, 192, 3, 1, 0))
        self.mixed = list(_mixed_blocks())
        for name, block in _mixed_blocks().items():
            self.add_module(name, block)
        self.fc = nn.Linear(2048, 1008)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, 3, 299, 299) in [-1, 1] → (B, 2048)."""
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = F.max_pool2d(x, 3, stride=2)
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x))
        x = F.max_pool2d(x, 3, stride=2)
        for name in self.mixed:
            x = self.get_submodule(name)(x)
        return x.mean((2, 3))


def _mixed_blocks() -> dict[str, Mixed]:
    return {
        "Mixed_5b": _fine(192, 32),
        "Mixed_5c": _fine(256, 64),
        "Mixed_5d": _fine(288, 64),
        "Mixed_6a": _to_middle(288),
        "Mixed_6b": _middle(128),
        "Mixed_6c": _middle(160),
        "Mixed_6d": _middle(160),
        "Mixed_6e": _middle(192),
        "Mixed_7a": _to_coarse(768),
        "Mixed_7b": _coarse(1280, "mean"),
        "Mixed_7c": _coarse(2048, "max"),
    }


def _fine(channels: int, pooled: int) -> Mixed:
    """Figure 5 of the paper, 35x35."""
    convs: dict[str, Conv] = {
        "branch1x1": (channels, 64, 1, 1, 0),
        "branch5x5_1": (channels, 48, 1, 1, 0),
        "branch5x5_2": (48, 64, 5, 1, 2),
        "branch3x3dbl_1": (channels, 64, 1, 1, 0),
        "branch3x3dbl_2": (64, 96, 3, 1, 1),
        "branch3x3dbl_3": (96, 96, 3, 1, 1),
        "branch_pool": (channels, pooled, 1, 1, 0),
    }
    return Mixed(convs, [["branch1x1"], _chain("branch5x5", 2), _chain("branch3x3dbl", 3)], "mean")


def _to_middle(channels: int) -> Mixed:
    """35x35 → 17x17 (figure 10)."""
    convs: dict[str, Conv] = {
        "branch3x3": (channels, 384, 3, 2, 0),
        "branch3x3dbl_1": (channels, 64, 1, 1, 0),
        "branch3x3dbl_2": (64, 96, 3, 1, 1),
        "branch3x3dbl_3": (96, 96, 3, 2, 0),
    }
    return Mixed(convs, [["branch3x3"], _chain("branch3x3dbl", 3)], "shrink")


def _middle(width: int) -> Mixed:
    """Figure 6, 17x17, 768 channels."""
    convs: dict[str, Conv] = {
        "branch1x1": (768, 192, 1, 1, 0),
        "branch7x7_1": (768, width, 1, 1, 0),
        "branch7x7_2": (width, width, *_ROW),
        "branch7x7_3": (width, 192, *_COLUMN),
        "branch7x7dbl_1": (768, width, 1, 1, 0),
        "branch7x7dbl_2": (width, width, *_COLUMN),
        "branch7x7dbl_3": (width, width, *_ROW),
        "branch7x7dbl_4": (width, width, *_COLUMN),
        "branch7x7dbl_5": (width, 192, *_ROW),
        "branch_pool": (768, 192, 1, 1, 0),
    }
    return Mixed(convs, [["branch1x1"], _chain("branch7x7", 3), _chain("branch7x7dbl", 5)], "mean")


def _to_coarse(channels: int) -> Mixed:
    """17x17 → 8x8."""
    convs: dict[str, Conv] = {
        "branch3x3_1": (channels, 192, 1, 1, 0),
        "branch3x3_2": (192, 320, 3, 2, 0),
        "branch7x7x3_1": (channels, 192, 1, 1, 0),
        "branch7x7x3_2": (192, 192, *_ROW),
        "branch7x7x3_3": (192, 192, *_COLUMN),
        "branch7x7x3_4": (192, 192, 3, 2, 0),
    }
    return Mixed(convs, [_chain("branch3x3", 2), _chain("branch7x7x3", 4)], "shrink")


def _coarse(channels: int, pool: Pool) -> Mixed:
    """Figure 7, 8x8."""
    convs: dict[str, Conv] = {
        "branch1x1": (channels, 320, 1, 1, 0),
        "branch3x3_1": (channels, 384, 1, 1, 0),
        "branch3x3_2a": (384, 384, *_SHORT_ROW),
        "branch3x3_2b": (384, 384, *_SHORT_COLUMN),
        "branch3x3dbl_1": (channels, 448, 1, 1, 0),
        "branch3x3dbl_2": (448, 384, 3, 1, 1),
        "branch3x3dbl_3a": (384, 384, *_SHORT_ROW),
        "branch3x3dbl_3b": (384, 384, *_SHORT_COLUMN),
        "branch_pool": (channels, 192, 1, 1, 0),
    }
    short: Branch = ["branch3x3_1", ("branch3x3_2a", "branch3x3_2b")]
    double = [*_chain("branch3x3dbl", 2), ("branch3x3dbl_3a", "branch3x3dbl_3b")]
    return Mixed(convs, [["branch1x1"], short, double], pool)


def _chain(name: str, steps: int) -> Branch:
    return [f"{name}_{step}" for step in range(1, steps + 1)]


def tf1_bilinear(x: Tensor, size: int) -> Tensor:
    """Resize (B, C, H, W) to squares as TensorFlow 1 did: output i looks at i · H / size.

    Neither half-pixel centres nor antialiasing, and nothing beyond the last pixel: FID's original
    preparation, which moves the number when it is replaced by a better one.
    """
    for axis in (-2, -1):
        length = x.shape[axis]
        place = torch.arange(size, device=x.device, dtype=torch.float32) * (length / size)
        low = place.floor().long()
        share = (place - low).view(-1, 1) if axis == -2 else place - low
        a, b = (x.index_select(axis, index) for index in (low, (low + 1).clamp(max=length - 1)))
        x = a + (b - a) * share
    return x
