"""The causal convolution in Triton; sums are float32, and the same bits every time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lit_restore.ops.causal_conv.arguments import Conv
from lit_restore.ops.selective_scan.arguments import adjacent, not_single
from lit_restore.ops.selective_scan.triton import device_of, launch, unavailable

__all__ = ["backward", "forward", "unavailable", "unfit"]

MOST_TAPS = 16
"""Beyond it the window is more than registers hold."""
_WIDTH, _SEGMENT = 128, 64


def unfit(c: Conv) -> str | None:
    """Why these arguments are not for it, in a line."""
    why = not_single(c.x)
    if why is None and c.weight.shape[-1] > MOST_TAPS:
        why = f"{c.weight.shape[-1]} taps are more than {MOST_TAPS}"
    return why


def forward(c: Conv) -> Tensor:
    """See `arguments`."""
    from lit_restore.ops.causal_conv.triton_forward import conv_forward

    y = c.x.new_empty(c.x.shape)
    if y.numel():
        x, tensors, options = _prepared(c)
        _, length, groups, channels = c.x.shape
        with device_of(x):
            conv_forward[_grid(c)](
                x, *tensors, y, length, groups, channels, *x.stride()[:3], **options, **launch(1)
            )
    return y


def backward(c: Conv, grad: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """See `arguments`."""
    from lit_restore.ops.causal_conv.triton_backward import conv_backward

    batch, length, groups, channels = c.x.shape
    dx = c.x.new_empty(c.x.shape)
    parts = (max(1, -(-length // _SEGMENT)), batch, groups, channels)
    new = torch.empty if dx.numel() else torch.zeros
    dbias = new(parts, dtype=torch.float32, device=c.x.device)
    dweight = new((*parts, c.weight.shape[-1]), dtype=torch.float32, device=c.x.device)
    if dx.numel():
        x, tensors, options = _prepared(c)
        with device_of(x):
            conv_backward[_grid(c)](
                x, *tensors, grad.contiguous(), dx, dweight, dbias,
                batch, length, groups, channels, *x.stride()[:3], **options, **launch(1),
            )  # fmt: skip
    return (
        dx,
        dweight.sum((0, 1)).to(c.weight.dtype),
        None if c.bias is None else dbias.sum((0, 1)).to(c.bias.dtype),
    )


def _grid(c: Conv) -> tuple[int, int, int]:
    batch, length, groups, channels = c.x.shape
    return batch * groups, -(-channels // _WIDTH), -(-length // _SEGMENT)


def _prepared(c: Conv) -> tuple[Tensor, list[Tensor], dict[str, Any]]:
    """X with neighbouring channels adjacent; weight, bias and index, x in place of absent ones."""
    x = adjacent(c.x)
    taps = c.weight.shape[-1]
    tensors = [x if t is None else t.contiguous() for t in (c.weight, c.bias, c.index)]
    return x, tensors, {
        "TAPS": tuple(range(taps)), "K": taps, "WIDTH": _WIDTH, "SEGMENT": _SEGMENT,
        "SILU": c.silu, "HAS_BIAS": c.bias is not None, "HAS_INDEX": c.index is not None,
    }  # fmt: skip
