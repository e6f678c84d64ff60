"""Swin transformer blocks on pictures of any size that is a multiple of the window.

Liu et al. 2021, arXiv 2103.14030, in the residual groups of SwinIR (Liang et al. 2021, arXiv
2108.10257). Features are (B, H, W, C) throughout.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lit_restore.networks.embeddings import drop_path

_FORBIDDEN = -100.0
"""Added to the logits of pairs that may not meet; trained weights know this number, not -inf."""


class SwinBlock(nn.Module):
    """Attention within windows, then an MLP, each on its normalised input and added to it.

    Args:
        width: channels.
        heads: attention heads.
        window: side of a window, pixels.
        shift: by how much the windows are shifted, 0 or half a window.
        mlp_ratio: hidden channels of the MLP over channels.
        drop: probability that a branch is left out in training, for each sample.
    """

    def __init__(
        self, width: int, heads: int, window: int, shift: int, mlp_ratio: int, drop: float
    ) -> None:
        super().__init__()
        self.window, self.shift, self.drop = window, shift, drop
        self.norm1 = nn.LayerNorm(width)
        self.attn = WindowAttention(width, heads, window)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = MLP(width, mlp_ratio * width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, width) → the same shape; H and W multiples of the window."""
        x = x + drop_path(self._attended(self.norm1(x)), self.drop, self.training)
        return x + drop_path(self.mlp(self.norm2(x)), self.drop, self.training)

    def _attended(self, x: Tensor) -> Tensor:
        size = (x.shape[1], x.shape[2])
        if not self.shift:
            return joined(self.attn(windows(x, self.window), None), self.window, size)
        x = x.roll((-self.shift, -self.shift), dims=(1, 2))
        mask = shift_mask(size, self.window, self.shift, x)
        x = joined(self.attn(windows(x, self.window), mask), self.window, size)
        return x.roll((self.shift, self.shift), dims=(1, 2))


class WindowAttention(nn.Module):
    """Multi-head attention with a learned bias for each relative position.

    Args:
        width: channels.
        heads: attention heads.
        window: side of a window, pixels.
    """

    relative: Tensor

    def __init__(self, width: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        table = torch.empty((2 * window - 1) ** 2, heads)
        self.relative_position_bias_table = nn.Parameter(nn.init.trunc_normal_(table, std=0.02))
        self.register_buffer("relative", relative_positions(window), persistent=False)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Attend within each window.

        Args:
            x: (windows, N, width), the windows of a picture next to each other.
            mask: None, or (windows of a picture, N, N), added to the logits.

        Returns:
            The shape of x.
        """
        count, tokens, width = x.shape
        split = (count, tokens, 3, self.heads, width // self.heads)
        q, k, v = self.qkv(x).view(split).permute(2, 0, 3, 1, 4)
        bias = self.relative_position_bias_table[self.relative].permute(2, 0, 1)[None]
        if mask is not None:
            bias = (bias + mask[:, None]).repeat(count // len(mask), 1, 1, 1)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype))
        mixed: Tensor = self.proj(out.transpose(1, 2).reshape(x.shape))
        return mixed


class MLP(nn.Module):
    """Two linear layers with a GELU between."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """(…, width) → the same shape."""
        out: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return out


class ResidualGroup(nn.Module):
    """Swin blocks, a convolution, and a skip over all of them (SwinIR's RSTB)."""

    def __init__(self, blocks: Sequence[SwinBlock], width: int) -> None:
        super().__init__()
        # The name of the inner list is the published network's.
        self.residual_group = nn.ModuleDict({"blocks": nn.ModuleList(blocks)})
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, width) → the same shape."""
        inner = x
        for block in self.residual_group["blocks"].children():
            inner = block(inner)
        change: Tensor = self.conv(inner.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return x + change


def swin_blocks(
    width: int, heads: int, window: int, mlp_ratio: int, drops: Sequence[float]
) -> list[SwinBlock]:
    """One block for each of `drops`, every second one with shifted windows."""
    return [
        SwinBlock(width, heads, window, window // 2 if k % 2 else 0, mlp_ratio, drop)
        for k, drop in enumerate(drops)
    ]


def windows(x: Tensor, side: int) -> Tensor:
    """(B, H, W, C) → (B · H/side · W/side, side², C), row by row."""
    batch, height, width, channels = x.shape
    x = x.view(batch, height // side, side, width // side, side, channels)
    return x.transpose(2, 3).reshape(-1, side * side, channels)


def joined(x: Tensor, side: int, size: tuple[int, int]) -> Tensor:
    """The inverse of `windows` for pictures of `size` (H, W)."""
    height, width = size
    channels = x.shape[-1]
    x = x.view(-1, height // side, width // side, side, side, channels)
    return x.transpose(2, 3).reshape(-1, height, width, channels)


def relative_positions(window: int) -> Tensor:
    """(N, N): for tokens i and j of a window, the row of the bias table of their distance."""
    places = torch.cartesian_prod(torch.arange(window), torch.arange(window))
    distance = places[:, None] - places[None] + window - 1
    index: Tensor = distance[..., 0] * (2 * window - 1) + distance[..., 1]
    return index


def shift_mask(size: tuple[int, int], window: int, shift: int, like: Tensor) -> Tensor:
    """What keeps pixels apart that only the cyclic shift has brought into one window.

    Args:
        size: (H, W).
        window: side of a window.
        shift: of the windows.
        like: gives type and device.

    Returns:
        (H/window · W/window, N, N): 0, or -100 for pairs that may not meet.
    """

    def region(side: int) -> Tensor:
        index = torch.arange(side, device=like.device)
        return (index >= side - window).long() + (index >= side - shift).long()

    regions = 3 * region(size[0])[:, None] + region(size[1])
    inside = windows(regions[None, ..., None], window).squeeze(-1)
    apart = inside[:, :, None] != inside[:, None, :]
    return apart.to(like.dtype) * _FORBIDDEN
