"""Both Mamba mixers of a block in one launch (Mamba-1: Gu & Dao, arXiv 2312.00752, algorithm 2).

x, z = in_proj(v); x = silu(conv(x)); Δ, B, C = x_proj(x); Δ = dt_proj(Δ);
h_t = exp(ΔA) h_{t-1} + ΔB x_t; y_t = C h_t + D x_t; out_proj(y silu(z)).
Each branch runs along an order of its own, which the convolution and the scan follow by index:
tokens are never moved.
"""

from __future__ import annotations

import math
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lit_restore.networks.dimsum.layers import GROUPS, GroupedLinear, uniform
from lit_restore.ops import causal_conv, selective_scan

Conditioning = Literal["none", "inert", "prefix"]
_DT_MIN, _DT_MAX, _DT_FLOOR = 1e-3, 1e-1, 1e-4


class Mixers(nn.Module):
    """The spatial and the wavelet mixer of a block.

    Args:
        width: channels d of each branch.
        depth: of the network, by whose root the output starts smaller.
        state: size N of the state of each channel.
        taps: length of the causal convolution.
        expand: inner channels are `expand` · `width`.
        conditioning: none; inert (the published weights' unused projection of the time and class
            embedding is kept); prefix (that projection is a token that stands before the first,
            so that convolution and state begin with it).
        embedding: size of the time and class embedding.
    """

    def __init__(
        self,
        width: int,
        *,
        depth: int,
        state: int,
        taps: int,
        expand: int,
        conditioning: Conditioning,
        embedding: int,
    ) -> None:
        super().__init__()
        inner = expand * width
        self.inner, self.state, self.rank = inner, state, math.ceil(width / 16)
        self.conditioning = conditioning
        self.in_proj = GroupedLinear(GROUPS, width, 2 * inner, bias=False)
        self.conv_weight = nn.Parameter(torch.empty(GROUPS * inner, taps))
        self.conv_bias = nn.Parameter(torch.zeros(GROUPS * inner))
        self.x_proj = GroupedLinear(GROUPS, inner, self.rank + 2 * state, bias=False)
        self.dt_proj = GroupedLinear(GROUPS, self.rank, inner, bias=False)
        self.dt_bias = nn.Parameter(torch.empty(GROUPS * inner))
        self.A_log = nn.Parameter(torch.arange(1.0, state + 1).log().repeat(GROUPS * inner, 1))
        self.D = nn.Parameter(torch.ones(GROUPS * inner))
        self.out_proj = GroupedLinear(GROUPS, inner, width, bias=False)
        self.cond_proj: GroupedLinear | None = None
        if conditioning != "none":
            self.cond_proj = GroupedLinear(GROUPS, embedding, inner, bias=True)
            self.cond_proj.requires_grad_(conditioning == "prefix")
        self._start(depth)

    def _start(self, depth: int) -> None:
        uniform(self.conv_weight, self.conv_weight.shape[1])
        with torch.no_grad():
            # softplus(bias) is log-uniform between the two
            dt = torch.empty_like(self.dt_bias).uniform_(math.log(_DT_MIN), math.log(_DT_MAX)).exp()
            dt.clamp_(min=_DT_FLOOR)
            self.dt_bias.copy_(dt + torch.log(-torch.expm1(-dt)))
            self.out_proj.weight.div_(math.sqrt(depth))

    def forward(self, v: Tensor, index: Tensor, c: Tensor | None = None) -> Tensor:
        """Mix the tokens of both branches.

        Args:
            v: (B, N, 2, d).
            index: (2, N) int, the token of each step of each branch.
            c: time and class embedding (B, E); needed for prefix conditioning.

        Returns:
            (B, N, 2, d).
        """
        x, z = self.in_proj(v).chunk(2, dim=-1)
        if self.conditioning == "prefix":
            assert c is not None
            x, z, index = self._prefixed(x, z, index, c)
        groups = (GROUPS, self.inner)
        x = causal_conv(x, self.conv_weight.view(*groups, -1), self.conv_bias.view(groups), index)
        dt, b, c_out = self.x_proj(x).split([self.rank, self.state, self.state], dim=-1)
        y = selective_scan(
            x,
            self.dt_proj(dt),
            -self.A_log.exp().view(*groups, -1),
            b,
            c_out,
            self.D.view(groups),
            z,
            self.dt_bias.view(groups),
            index=index,
        )
        if self.conditioning == "prefix":
            y = y[:, 1:]
        return cast("Tensor", self.out_proj(y))

    def _prefixed(
        self, x: Tensor, z: Tensor, index: Tensor, c: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Row 0 becomes the embedding's, every branch's first step; all others move up by one."""
        assert self.cond_proj is not None
        first = self.cond_proj(F.silu(c)[:, None, None].expand(-1, 1, GROUPS, -1))
        index = torch.cat([index.new_zeros(GROUPS, 1), index + 1], dim=1)
        x = torch.cat([first.to(x.dtype), x], dim=1)
        return x, F.pad(z, (0, 0, 0, 0, 1, 0)), index
