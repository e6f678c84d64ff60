"""The selective scan as a loop over time in plain PyTorch: every device, every order of derivative.

One state (batch, G, D, N) at a time; nothing of (batch, L, D, N) is made, which is what the usual
loop spends its time on. Mamba (Gu and Dao, arXiv 2312.00752, eq. 2 with the Euler rule for B):

    delta_t = softplus(dt_t + dt_bias)
    h_t = exp(delta_t A) h_{t-1} + delta_t B_t u_t
    y_t = (<C_t, h_t> + D u_t) silu(z_t)
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from lit_restore.ops.selective_scan.arguments import CHUNK, Scan, inverse, rows
from lit_restore.ops.selective_scan.recurrence import delta_of, step
from lit_restore.ops.selective_scan.reference_backward import backward

__all__ = ["backward", "forward", "scan"]


def scan(s: Scan) -> tuple[Tensor, Tensor]:
    """What autograd differentiates: forwards, backwards, twice.

    Its own backward keeps all states; that of `forward` is `backward`.

    Args:
        s: the arguments.

    Returns:
        y (batch, L, G, D) of the type of ``s.u``, and the last state (batch, G, D, N), detached.
    """
    y, states = _run(s)
    return y, states[-1].detach()


def forward(s: Scan, *, save: bool) -> tuple[Tensor, Tensor, Tensor]:
    """See `arguments`."""
    y, states = _run(s)
    kept = states[-1].new_empty(s.states_shape(save=save))
    for k in range(kept.shape[1]):
        kept[:, k] = states[k].mT
    return y.contiguous(), states[-1], kept


def _run(s: Scan) -> tuple[Tensor, list[Tensor]]:
    """The output in token order, and the states before each chunk and after the last step."""
    with torch.autocast(s.u.device.type, enabled=False):
        x = s.widened().in_order()
        delta = delta_of(x)
        inputs = delta * x.u
        h = x.u.new_zeros(x.state_shape)
        products: list[Tensor] = []
        states: list[Tensor] = []
        steps = zip(*(t.unbind(1) for t in (delta, inputs, x.B, x.C)), strict=True)
        for t, (d, du, b, c) in enumerate(steps):
            if t % CHUNK == 0:
                states.append(h)
            h = step(h, torch.exp(d[..., None] * x.A), du, b)
            products.append((h @ c[..., None]).squeeze(-1))
        y = torch.stack(products, 1) if products else inputs
        if x.D is not None:
            y = y + x.D * x.u
        if x.z is not None:
            y = y * F.silu(x.z)
        if s.index is not None:
            y = rows(y, inverse(s.index))
    return y.to(s.u.dtype), [*states, h]
