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

from lit_restore.ops.selective_scan.arguments import Grads, Scan, inverse, rows

_TYPES = (torch.float32, torch.bfloat16, torch.float16)
_STREAMS = ("u", "dt", "B", "C", "z")
_ARGUMENTS = ("u", "dt", "A", "B", "C", "D", "z", "dt_bias")


def unavailable() -> str | None:
    """Why it cannot run here, in a line."""
    found = _function()
    return found if isinstance(found, str) else None


def unfit(s: Scan) -> str | None:
    """Why these arguments are not for it, in a line."""
    if any(t.dtype not in _TYPES for t in (s.u, s.dt, s.B, s.C)):
        return "it computes in float32"
    if s.A.shape[-1] > 256:
        return f"{s.A.shape[-1]} states are more than 256"
    return None


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
    y, last = _run(s, _taken(s))
    kept = last.new_empty(s.states_shape(save=save))
    return y, last.detach().reshape(s.state_shape), kept


def backward(s: Scan, grad: Tensor, states: Tensor) -> Grads:
    """See `arguments`."""
    given = {name: t for name in _ARGUMENTS if (t := _taken(s)[name]) is not None}
    leaves = {name: t.detach().requires_grad_() for name, t in given.items()}
    with torch.enable_grad():
        y, _ = _run(s, {**dict.fromkeys(_ARGUMENTS), **leaves})
        found = torch.autograd.grad(y, list(leaves.values()), grad.to(y.dtype))
    grads = dict(zip(leaves, found, strict=True))
    return Grads(*(grads.get(name) for name in _ARGUMENTS)).cast_like(s)  # type: ignore[arg-type]


def _taken(s: Scan) -> dict[str, Tensor | None]:
    """All in the types that it takes: one for what changes over time, float32 for the rest."""
    return {
        name: None
        if (t := getattr(s, name)) is None
        else t.to(s.u.dtype if name in _STREAMS else torch.float32)
        for name in _ARGUMENTS
    }


def _run(s: Scan, taken: dict[str, Tensor | None]) -> tuple[Tensor, Tensor]:
    """Y (batch, L, G, D) in token order and the last state (batch, G D, N)."""
    function = _function()
    assert not isinstance(function, str), function
    ordered = {
        name: rows(t, s.index) if t is not None and s.index is not None and name in _STREAMS else t
        for name, t in taken.items()
    }
    whole = {
        name: None if (t := ordered[name]) is None else t.flatten(2).mT.contiguous()
        for name in ("u", "dt", "z")
    }
    A, D, bias = (
        None if (t := ordered[name]) is None else t.flatten(0, 1) for name in ("A", "D", "dt_bias")
    )
    B, C = (ordered[name].permute(0, 2, 3, 1).contiguous() for name in ("B", "C"))  # type: ignore[union-attr]
    with torch.autocast(s.u.device.type, enabled=False):
        y, last = function(
            whole["u"], whole["dt"], A, B, C, D, whole["z"], bias,
            delta_softplus=s.dt_softplus, return_last_state=True,
        )  # fmt: skip
    y = y.mT.unflatten(-1, s.u.shape[2:])
    y = y if s.index is None else rows(y, inverse(s.index))
    return y.contiguous(), last
