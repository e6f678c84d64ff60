"""The scan step by step in float64, and arguments to try it on."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lit_restore.ops.causal_conv import cpu as conv_cpu
from lit_restore.ops.selective_scan import cpu as scan_cpu

CPU = pytest.param(
    "cpu",
    marks=pytest.mark.skipif(
        bool(scan_cpu.unavailable() or conv_cpu.unavailable()),
        reason="no C++ compiler here",
    ),
)
BACKENDS = ["reference", CPU]


@dataclass
class Case:
    """Arguments of `selective_scan`, in its order."""

    u: Tensor
    dt: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None
    z: Tensor | None
    dt_bias: Tensor | None

    @property
    def given(self) -> list[Tensor]:
        """Those that are there."""
        return [t for t in self.args if t is not None]

    @property
    def args(self) -> tuple[Tensor | None, ...]:
        return tuple(getattr(self, name) for name in self.__dataclass_fields__)

    def to(self, dtype: torch.dtype) -> Case:
        """Leaves of another type that require a gradient."""
        return Case(
            *(None if t is None else t.detach().to(dtype).requires_grad_() for t in self.args)
        )

    def without(self, *names: str) -> Case:
        return replace(self, **dict.fromkeys(names))


def draw(
    batch: int = 2, length: int = 21, channels: int = 5, states: int = 3, *,
    groups: int | None = None, shared: int | None = None, seed: int = 0,
) -> Case:  # fmt: skip
    """float64 arguments; `groups` of scans, or `shared` parts of B and C for one."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    inner = (channels,) if groups is None else (groups, channels)
    few = () if groups is None and shared is None else (groups or shared or 0,)
    return Case(
        normal(batch, length, *inner),
        normal(batch, length, *inner) - 1,
        -torch.exp(normal(*inner, states)),
        normal(batch, length, *few, states),
        normal(batch, length, *few, states),
        normal(*inner),
        normal(batch, length, *inner),
        normal(*inner),
    ).to(torch.float64)


def plain(c: Case, *, softplus: bool = True) -> tuple[Tensor, Tensor]:
    """y and the last state of an ungrouped case, from the formula, one time and row at a time."""
    repeats = 1 if c.B.ndim == 3 else c.u.shape[2] // c.B.shape[2]
    B, C = (t.unsqueeze(2) if t.ndim == 3 else t.repeat_interleave(repeats, 2) for t in (c.B, c.C))
    h = torch.zeros(c.u.shape[0], *c.A.shape, dtype=c.u.dtype)
    out = []
    for t in range(c.u.shape[1]):
        raw = c.dt[:, t] if c.dt_bias is None else c.dt[:, t] + c.dt_bias
        delta = F.softplus(raw) if softplus else raw
        h = torch.exp(delta[..., None] * c.A) * h + (delta * c.u[:, t])[..., None] * B[:, t]
        y = (h * C[:, t]).sum(-1)
        if c.D is not None:
            y = y + c.D * c.u[:, t]
        out.append(y if c.z is None else y * c.z[:, t] * torch.sigmoid(c.z[:, t]))
    return torch.stack(out, 1), h


def gradients(y: Tensor, inputs: list[Tensor], seed: int = 1) -> tuple[Tensor, ...]:
    """Of y weighted by random numbers that only its shape decides."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(y.shape, generator=generator, dtype=torch.float64)
    return torch.autograd.grad(y, inputs, weights.to(y.dtype))


def relative(found: Tensor, true: Tensor) -> float:
    """The largest error, relative to the largest entry; itself where all entries are zero."""
    assert found.shape == true.shape
    found, true = found.detach().double(), true.detach().double()
    return float((found - true).abs().max() / (true.abs().max() or 1.0))
