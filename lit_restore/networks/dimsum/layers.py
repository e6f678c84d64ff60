"""The layers of DiMSUM's blocks that are no mixers: grouped linear, gated MLP, query-swap fusion.

Tokens are (B, N, D); D = 2 d, the first d channels spatial, the second d of the wavelet domain.
"""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lit_restore.networks.embeddings import HeadNorm

GROUPS = 2
"""The spatial and the wavelet branch of a block, which are computed together."""


class RMSNorm(nn.RMSNorm):
    """PyTorch's, with the gain in the type of the input: another keeps it from the fused kernel."""

    def forward(self, x: Tensor) -> Tensor:
        """(…, D) → the same shape and type."""
        return F.rms_norm(x, x.shape[-1:], self.weight.to(x.dtype), self.eps)


class GroupedLinear(nn.Module):
    """`groups` linear layers of one shape as one batched product.

    The parameters lie one group after the other along the first axis, so that sharding and weight
    decay treat them as what they are.

    Args:
        groups: number of layers.
        inputs: channels in, of each.
        outputs: channels out, of each.
        bias: whether they have one.
    """

    def __init__(self, groups: int, inputs: int, outputs: int, bias: bool) -> None:
        super().__init__()
        self.groups = groups
        self.weight = nn.Parameter(torch.empty(groups * outputs, inputs))
        self.bias = nn.Parameter(torch.zeros(groups * outputs)) if bias else None
        uniform(self.weight, inputs)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, G, inputs) → (B, N, G, outputs), a view of a group-major tensor."""
        batch, count, groups, inputs = x.shape
        rows = x.permute(2, 0, 1, 3).reshape(groups, batch * count, inputs)
        weight = self.weight.view(groups, -1, inputs).transpose(1, 2)
        if self.bias is None:
            y = torch.bmm(rows, weight)
        else:
            y = torch.baddbmm(self.bias.view(groups, 1, -1), rows, weight)
        return y.view(groups, batch, count, y.shape[-1]).permute(1, 2, 0, 3)


class GatedMLP(nn.Module):
    """w3(GELU_tanh(a) · b) with (a, b) = w12(x).

    Args:
        width: channels in and out.
        hidden: channels of a and of b.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.w12 = nn.Linear(width, 2 * hidden)
        self.w3 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, width) → the same shape."""
        a, b = self.w12(x).chunk(2, dim=-1)
        return cast("Tensor", self.w3(F.gelu(a, approximate="tanh") * b))


class QKNorm(nn.Module):
    """RMS norm of queries and of keys."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.q = HeadNorm(size)
        self.k = HeadNorm(size)

    def forward(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """(…, size) each → the same shapes and types."""
        return self.q(q), self.k(k)


class Fusion(nn.Module):
    """Two cross-attentions whose queries (or keys) are swapped between the branches, as one call.

    [attend(q1, k2, v2) | attend(q2, k1, v1)], then a linear layer; with `swap` k the keys alone
    change sides.

    Args:
        width: channels D of both branches together.
        heads: heads of each branch.
        swap: what changes sides, "q" (as released) or "k".
        qk_norm: normalise queries and keys.
    """

    def __init__(self, width: int, heads: int, *, swap: str = "q", qk_norm: bool = False) -> None:
        super().__init__()
        half = width // GROUPS
        self.heads, self.swap = heads, swap
        self.qkv = GroupedLinear(GROUPS, half, 3 * half, bias=True)
        self.proj = nn.Linear(width, width)
        self.norm = QKNorm(half // heads) if qk_norm else None

    def forward(self, spatial: Tensor, wavelet: Tensor) -> Tensor:
        """Both (B, N, D/2) → (B, N, D)."""
        batch, count, half = spatial.shape
        weights = self.qkv.weight.view(GROUPS, -1, half)
        assert self.qkv.bias is not None
        biases = self.qkv.bias.view(GROUPS, -1)
        shape = (batch, count, 3, self.heads, half // self.heads)
        q1, k1, v1 = F.linear(spatial, weights[0], biases[0]).view(shape).unbind(2)
        q2, k2, v2 = F.linear(wavelet, weights[1], biases[1]).view(shape).unbind(2)
        if self.swap == "q":
            q, k, v = (q1, q2), (k2, k1), (v2, v1)
        else:
            q, k, v = (q2, q1), (k1, k2), (v2, v1)
        y = attend(torch.cat(q, dim=2), torch.cat(k, dim=2), torch.cat(v, dim=2), self.norm)
        return cast("Tensor", self.proj(y))


def attend(q: Tensor, k: Tensor, v: Tensor, norm: QKNorm | None) -> Tensor:
    """Softmax attention of (B, N, heads, size) each → (B, N, heads · size)."""
    if norm is not None:
        q, k = norm(q, k)
    y = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
    return y.transpose(1, 2).flatten(2)


def uniform(weight: Tensor, inputs: int) -> None:
    """PyTorch's default start of a linear layer: U(±1/√inputs)."""
    bound = 1 / math.sqrt(inputs)
    nn.init.uniform_(weight, -bound, bound)
