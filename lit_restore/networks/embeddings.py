"""What transformer-like backbones share at both ends: patches, positions, times, labels.

Names and orders are those of DiT (Peebles & Xie, arXiv 2212.09748) and of MAE's position table
(He et al., arXiv 2111.06377), so that published weights fit. Tokens are row-major: the token of
grid row y and column x is number y · columns + x.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lit_restore.errors import UserError
from lit_restore.networks.base import require_lists_of_counts

_BASE = 10000.0
"""Ratio of the slowest to the fastest wavelength of both sinusoids."""


def sincos_2d(width: int, height_tokens: int, width_tokens: int) -> Tensor:
    """MAE's fixed two-dimensional sinusoids, the start of a learnable position embedding.

    Args:
        width: channels, a multiple of 4.
        height_tokens: rows of the grid.
        width_tokens: columns of the grid.

    Returns:
        (height_tokens · width_tokens, width) float32. The first half of the channels is of the
        column, the second of the row; each is [sin | cos] of coordinate · 10000^(-k/(width/4)).

    Raises:
        UserError: `width` is no multiple of 4.
    """
    if width % 4:
        raise UserError(f"{width} is no multiple of 4 (sin and cos of two axes)", where="width")
    quarter = width // 4
    frequencies = _BASE ** (-torch.arange(quarter, dtype=torch.float64) / quarter)
    rows, columns = torch.meshgrid(
        torch.arange(height_tokens, dtype=torch.float64),
        torch.arange(width_tokens, dtype=torch.float64),
        indexing="ij",
    )
    angles = [axis.reshape(-1, 1) * frequencies for axis in (columns, rows)]
    return torch.cat([f(a) for a in angles for f in (torch.sin, torch.cos)], dim=1).float()


def timestep_features(t: Tensor, count: int = 256, scale: float = 1.0) -> Tensor:
    """Sinusoids of a time, [cos | sin] of scale · t · exp(-ln(10⁴) · k/(count/2)).

    Args:
        t: times (B,).
        count: features, even.
        scale: factor on the time; 1000 for times in [0, 1] that shall turn many times.

    Returns:
        (B, count), float64 for float64 times, float32 otherwise: half precision does not hold
        angles of hundreds of radians.
    """
    assert count % 2 == 0, count
    dtype = torch.float64 if t.dtype == torch.float64 else torch.float32
    k = torch.arange(count // 2, dtype=dtype, device=t.device)
    angles = scale * t.to(dtype)[:, None] * torch.exp(-math.log(_BASE) / (count // 2) * k)
    return torch.cat([angles.cos(), angles.sin()], dim=1)


class TimestepEmbedder(nn.Module):
    """A time as a vector: `timestep_features`, then linear, SiLU, linear.

    Args:
        width: size of the vector.
        scale: factor on the time before the sinusoids.
    """

    features = 256

    def __init__(self, width: int, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale
        self.mlp = nn.Sequential(
            nn.Linear(self.features, width), nn.SiLU(), nn.Linear(width, width)
        )

    def forward(self, t: Tensor) -> Tensor:
        """Times (B,) → (B, width), of the weights' dtype."""
        weight = cast("nn.Linear", self.mlp[0]).weight
        features = timestep_features(t, self.features, self.scale)
        return cast("Tensor", self.mlp(features.to(weight.dtype)))


class LabelEmbedder(nn.Module):
    """A class label as a vector; row `classes` is the null class, which stands for no label.

    Args:
        classes: number of classes; 0 leaves the null class alone.
        width: size of the vector.
    """

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        self.classes = classes
        self.embedding_table = nn.Embedding(classes + 1, width)

    def forward(self, y: Tensor | None, batch: int) -> Tensor:
        """Labels (B,) int64 in [0, classes], or None for the null class → (batch, width)."""
        if y is None:
            return self.embedding_table.weight[self.classes].expand(batch, -1)
        return cast("Tensor", self.embedding_table(y))


class PatchEmbed(nn.Module):
    """Non-overlapping square patches as tokens: a convolution whose stride is its kernel.

    Args:
        channels: channels of the picture or latent.
        width: channels of a token.
        patch: side of a patch.
    """

    def __init__(self, channels: int, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, patch, stride=patch)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W), H and W multiples of the patch → (B, N, width), row-major."""
        return cast("Tensor", self.proj(x)).flatten(2).transpose(1, 2)


def unpatchify(tokens: Tensor, grid: tuple[int, int], patch: int, channels: int) -> Tensor:
    """Put tokens of pixels back in their places.

    Args:
        tokens: (B, N, patch² · channels), N row-major in the grid; a token's values are ordered
            (row in the patch, column in the patch, channel).
        grid: rows and columns of tokens.
        patch: side of a patch.
        channels: channels of the picture.

    Returns:
        (B, channels, rows · patch, columns · patch).
    """
    batch, (rows, columns) = len(tokens), grid
    x = tokens.reshape(batch, rows, columns, patch, patch, channels)
    return x.permute(0, 5, 1, 3, 2, 4).reshape(batch, channels, rows * patch, columns * patch)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Adaptive norm's affine part, x · (1 + scale) + shift (DiT, section 3.2).

    Args:
        x: tokens (B, N, D).
        shift: (B, D), the same for all tokens.
        scale: (B, D).

    Returns:
        (B, N, D).
    """
    return x * (1 + scale.unsqueeze(1)) + shift.unsqueeze(1)


class HeadNorm(nn.Module):
    """RMS norm of queries or keys (…, size), head by head, with a gain (QK-norm)."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        """(…, size) → the same shape and type."""
        # A gain of another type than the input would keep it from the fused kernel.
        gain = self.weight.to(x.dtype)
        return F.rms_norm(x, gain.shape, gain, eps=1e-6).to(x.dtype)


def drop_path(x: Tensor, rate: float, training: bool) -> Tensor:
    """Stochastic depth (Huang et al. 2016, arXiv 1603.09382), by sample and unbiased.

    Draws from the global generator, as dropout does: the training seeds it for every step.

    Args:
        x: a branch's output (B, …).
        rate: probability in [0, 1) that a sample's branch is dropped.
        training: False returns `x` itself.

    Returns:
        Zero for dropped samples, x / (1 - rate) for the others.
    """
    if not training or rate == 0:
        return x
    shape = (x.shape[0],) + (1,) * (x.ndim - 1)
    wide = torch.promote_types(x.dtype, torch.float32)
    # Not `bernoulli_`, which `torch.compile` compiles anew for every rate, and so for every block.
    kept = torch.rand(shape, dtype=wide, device=x.device) >= rate
    return (x * (kept.to(wide) / (1 - rate))).to(x.dtype)


def check_labels(y: Tensor | None, classes: int) -> None:
    """Refuse labels given to a network that has none.

    Raises:
        UserError: `classes` is 0 and `y` is not None.
    """
    if y is not None and not classes:
        raise UserError("labels were given to a network of classes: 0; leave y out", where="y")


def zero(layer: nn.Linear) -> None:
    """Set a linear layer's weight and bias to zero: what it feeds starts as nothing."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def sizes(size: int | Sequence[int], patch: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Height and width of the input, and rows and columns of its tokens.

    Args:
        size: [height, width], or one number for both.
        patch: side of a patch.

    Raises:
        UserError: `size` is not one or two positive integers, or the patch does not divide them.
    """
    require_lists_of_counts(size=[size, size] if isinstance(size, int) else size)
    both = (size, size) if isinstance(size, int) else tuple(size)
    if len(both) != 2:
        raise UserError(f"expects one number or [height, width], got {list(both)}", where="size")
    height, width = both
    if height % patch or width % patch:
        raise UserError(f"{height}x{width} is not divided by patch {patch}", where="size")
    return (height, width), (height // patch, width // patch)


def check_input(x: Tensor, channels: int, size: tuple[int, int]) -> None:
    """Refuse pictures (B, C, H, W) of another size than the position embedding is for.

    Raises:
        UserError: names both sizes.
    """
    if tuple(x.shape[1:]) != (channels, *size):
        wanted = "x".join(map(str, (channels, *size)))
        got = "x".join(map(str, x.shape[1:]))
        raise UserError(f"the network takes {wanted}, got {got}", where="x")
