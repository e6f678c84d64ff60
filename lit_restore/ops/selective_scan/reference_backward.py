"""The reference's backward: chunk by chunk, each one's states computed again.

With gy the gradient before the gate and G_t that of the state h_t, a_t = exp(delta_t A):

    G_t = C_t gy_t + a_{t+1} G_{t+1}
    dC_t = sum_d gy_t h_t,   dB_t = sum_d G_t delta_t u_t,   dA = sum_t G_t delta_t a_t h_{t-1}
    du_t = sum_n G_t B_t delta_t + D gy_t
    ddelta_t = sum_n G_t (B_t u_t + A a_t h_{t-1})
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lit_restore.ops.selective_scan.arguments import CHUNK, Grads, Scan, inverse, rows
from lit_restore.ops.selective_scan.recurrence import delta_of, step


def backward(s: Scan, grad: Tensor, states: Tensor) -> Grads:
    """See `arguments`."""
    with torch.autocast(s.u.device.type, enabled=False):
        x = s.widened()
        wide = grad.to(x.u.dtype)
        if s.index is None:
            found = _backward(x, wide, states)
        else:
            found = _back(_backward(x.in_order(), rows(wide, s.index), states), s.index)
        return found.cast_like(s)


def _back(g: Grads, index: Tensor) -> Grads:
    """Gradients in the order of the scan, in that of the tokens."""
    undo = inverse(index)
    u, dt, B, C = (rows(t, undo) for t in (g.u, g.dt, g.B, g.C))
    return Grads(u, dt, g.A, B, C, g.D, None if g.z is None else rows(g.z, undo), g.dt_bias)


@dataclass
class _Sums:
    """What a walk through the chunks adds up or fills in."""

    y: Tensor
    """<C_t, h_t>, shaped as u."""
    GB: Tensor
    """sum_n G_t B_t, shaped as u."""
    GA: Tensor
    """sum_n G_t A a_t h_{t-1}, shaped as u."""
    B: Tensor
    C: Tensor
    A: Tensor
    """B, C, A: gradients."""


def _backward(s: Scan, grad: Tensor, states: Tensor) -> Grads:
    """All in the order of the scan and the type of the state."""
    delta = delta_of(s)
    gate = None if s.z is None else torch.sigmoid(s.z)
    gy = grad if s.z is None or gate is None else grad * s.z * gate
    sums = _Sums(*(torch.zeros_like(t) for t in (s.u, s.u, s.u, s.B, s.C, s.A)))
    carry = torch.zeros(s.state_shape, dtype=s.u.dtype, device=s.u.device)
    for k in reversed(range(states.shape[1])):
        carry = _chunk(s, delta, gy, k * CHUNK, states[:, k].mT, carry, sums)
    ddt = sums.GB * s.u + sums.GA
    if s.dt_softplus:
        raw = s.dt if s.dt_bias is None else s.dt + s.dt_bias
        ddt = torch.where(raw > 20, ddt, ddt * torch.sigmoid(raw))
    du, y, dD, dz = sums.GB * delta, sums.y, None, None
    if s.D is not None:
        du, y, dD = du + s.D * gy, y + s.D * s.u, (gy * s.u).sum((0, 1))
    if s.z is not None and gate is not None:
        dz = grad * y * gate * (1 + s.z * (1 - gate))
    dbias = None if s.dt_bias is None else ddt.sum((0, 1))
    return Grads(du, ddt, sums.A, sums.B, sums.C, dD, dz, dbias)


def _chunk(
    s: Scan, delta: Tensor, gy: Tensor, start: int, h: Tensor, carry: Tensor, sums: _Sums
) -> Tensor:
    """Steps `start` … of one chunk, from its first state h; a_start G_start for the one before."""
    times = range(start, min(start + CHUNK, s.u.shape[1]))
    decays = [torch.exp(delta[:, t][..., None] * s.A) for t in times]
    states = [h]
    for t, a in zip(times, decays, strict=True):
        states.append(step(states[-1], a, delta[:, t] * s.u[:, t], s.B[:, t]))
    for t, a in zip(reversed(times), reversed(decays), strict=True):
        h, d, c, g = states.pop(), delta[:, t], s.C[:, t], gy[:, t]
        G = torch.addcmul(carry, g[..., None], c[..., None, :])
        sums.y[:, t] = (h @ c[..., None]).squeeze(-1)
        sums.C[:, t] = (g[..., None, :] @ h).squeeze(-2)
        sums.B[:, t] = ((d * s.u[:, t])[..., None, :] @ G).squeeze(-2)
        sums.GB[:, t] = (G @ s.B[:, t][..., None]).squeeze(-1)
        carry = a * G
        through = carry * states[-1]
        sums.GA[:, t] = (through * s.A).sum(-1)
        sums.A += (through * d[..., None]).sum(0)
    return carry
