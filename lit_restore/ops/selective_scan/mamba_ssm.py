"""The selective scan by mamba-ssm's CUDA kernel: on request only, for parity and benchmarks.

It is channel-major and knows no order of tokens, so tokens are gathered and transposed before it
and back after it; its backward runs its forward again.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from lit_restore.ops.selective_scan.arguments import Grads, Scan, inverse, not_single, rows

_STREAMS = ("u", "dt", "B", "C", "z")
_ARGUMENTS = ("u", "dt", "A", "B", "C", "D", "z", "dt_bias")


def unavailable() -> str | None:
    """Why it cannot run here, in a line."""
    found = _function()
    return found if isinstance(found, str) else None


def unfit(s: Scan) -> str | None:
    """Why these arguments are not for it, in a line."""
    why = not_single(s.u, s.dt, s.B, s.C)
    if why is None and s.A.shape[-1] > 256:
        why = f"{s.A.shape[-1]} states are more than 256"
    return why


@cache
def _function() -> Callable[..., Any] | str:
    """Its `selective_scan_fn`, or why there is none."""
    try:
        module = importlib.import_module("mamba_ssm.ops.selective_scan_interface")
        function: Callable[..., Any] = module.selective_scan_fn
    except Exception as error:  # its imports fail in many ways
        line = str(error).partition("\n")[0]
        return f"mamba-ssm cannot be imported ({line}); pip install lit-restore[cuda]"
    return function


def forward(s: Scan, *, save: bool) -> tuple[Tensor, Tensor, Tensor]:
    """See `arguments`; its own kept states are not ours, and none are kept."""
    y, last = _call(s, _channel_major(s))
    kept = last.new_empty(s.states_shape(save=save))
    return _tokens(y, s), last.detach().reshape(s.state_shape), kept


def backward(s: Scan, grad: Tensor, states: Tensor) -> Grads:
    """See `arguments`.

    Inside an operator PyTorch records nothing but what an `autograd.Function` does itself, so its
    own inputs are the leaves, and their gradients are brought back into our layout by hand.
    """
    leaves = {name: t.detach().requires_grad_() for name, t in _channel_major(s).items()}
    with torch.enable_grad():
        y, _ = _call(s, leaves)
        given = _rows(grad.to(y.dtype), s.index).flatten(2).mT.contiguous()
        found = dict(zip(leaves, torch.autograd.grad(y, list(leaves.values()), given), strict=True))
    back: dict[str, Tensor | None] = dict.fromkeys(_ARGUMENTS)
    for name, g in found.items():
        if name in ("B", "C"):
            ordered = g.permute(0, 3, 1, 2)
            back[name] = ordered if s.index is None else rows(ordered, inverse(s.index))
        else:
            back[name] = _tokens(g, s) if name in _STREAMS else g.reshape(getattr(s, name).shape)
    return Grads(*(back[name] for name in _ARGUMENTS)).cast_like(s)  # type: ignore[arg-type]


def _channel_major(s: Scan) -> dict[str, Tensor]:
    """What it takes: u, dt, z (batch, G D, L), B, C (batch, G, N, L), A (G D, N), D, dt_bias (G D).

    What changes over time has one type, the rest is float32.
    """
    found = {}
    for name in _ARGUMENTS:
        t: Tensor | None = getattr(s, name)
        if t is None:
            continue
        if name in _STREAMS:
            t = _rows(t.to(s.u.dtype), s.index)
            t = t.permute(0, 2, 3, 1) if name in ("B", "C") else t.flatten(2).mT
        else:
            t = t.float().flatten(0, 1)
        found[name] = t.contiguous()
    return found


def _call(s: Scan, given: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Y (batch, G D, L) in the order of the scan, and the last state (batch, G D, N)."""
    function = _function()
    assert not isinstance(function, str), function
    with torch.autocast(s.u.device.type, enabled=False):
        y, last = function(
            *(given.get(name) for name in _ARGUMENTS),
            delta_softplus=s.dt_softplus, return_last_state=True,
        )  # fmt: skip
    return y, last


def _rows(x: Tensor, index: Tensor | None) -> Tensor:
    return x if index is None else rows(x, index)


def _tokens(x: Tensor, s: Scan) -> Tensor:
    """(batch, G D, L) in the order of the scan as (batch, L, G, D) in that of the tokens."""
    y = x.mT.reshape(s.u.shape)
    return (y if s.index is None else rows(y, inverse(s.index))).contiguous()
