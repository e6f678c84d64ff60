"""The two formulas that the reference's forward and backward share."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from lit_restore.ops.selective_scan.arguments import Scan


def delta_of(s: Scan) -> Tensor:
    """The step sizes, shaped as ``s.dt``."""
    raw = s.dt if s.dt_bias is None else s.dt + s.dt_bias
    return F.softplus(raw) if s.dt_softplus else raw


def step(h: Tensor, a: Tensor, du: Tensor, b: Tensor) -> Tensor:
    """The state after one step.

    Args:
        h: the state before it, (batch, G, D, N).
        a: the decay exp(delta A), shaped as h.
        du: delta times u, (batch, G, D).
        b: B of this step, (batch, G, N).
    """
    return torch.addcmul(du[..., None] * b[..., None, :], a, h)
