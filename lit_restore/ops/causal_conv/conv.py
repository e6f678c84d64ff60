"""`causal_conv`: arguments checked and brought to one form, and the way to compute it chosen."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from lit_restore.errors import UserError
from lit_restore.ops.causal_conv import reference
from lit_restore.ops.causal_conv.arguments import Conv
from lit_restore.ops.causal_conv.op import conv_op
from lit_restore.ops.selective_scan.dispatch import REFERENCE, requested
from lit_restore.ops.selective_scan.shapes import check_devices, check_permutation, row_index
from lit_restore.ops.selective_scan.transforms import lowered, only_plain


def causal_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    index: Tensor | None = None,
    *,
    activation: Literal["silu"] | None = "silu",
    backend: str | None = None,
) -> Tensor:
    """A depthwise causal convolution, token-major, along any order of the tokens.

        y[index[t]] = act(bias + sum_k weight[K-1-k] x[index[t-k]]),   x = 0 before the start

    as ``Conv1d(D, D, K, groups=D, padding=K-1)`` cut to L tokens, whose weight is (D, 1, K). Sums
    are float32, float64 for float64 inputs.

    Args:
        x: (batch, L, D), or (batch, L, G, D) for G convolutions in one call. Strided views are not
            copied while neighbouring channels are neighbours in memory.
        weight: (D, K) or (G, D, K).
        bias: (D) or (G, D).
        index: int32 or int64, a permutation of the tokens (L) or one for each group (G, L), as in
            `selective_scan`. None: as they lie.
        activation: "silu", or None for none.
        backend: as in `selective_scan`.

    Returns:
        y, shaped and typed as x (under autocast in its lower type).

    Raises:
        UserError: a shape, type or index that does not fit; an unknown or unavailable backend.
    """
    c = _grouped(lowered(x, x.device.type), weight, bias, index, activation)
    name = requested(backend)
    plain = name == REFERENCE and not torch.compiler.is_compiling()
    if plain or only_plain():
        check_permutation(c.index)
        return reference.conv(c).reshape(x.shape)
    y: Tensor = conv_op(c.x, c.weight, c.bias, c.index, c.silu, name)
    return y.reshape(x.shape)


def _grouped(
    x: Tensor, weight: Tensor, bias: Tensor | None, index: Tensor | None, activation: str | None
) -> Conv:
    """All as views with an axis of groups."""
    if activation not in ("silu", None):
        raise UserError(f'"{activation}" is neither "silu" nor None', where="activation")
    if x.ndim not in (3, 4) or not x.is_floating_point():
        _refuse("x", x, "(batch, L, D) or (batch, L, G, D)")
    if weight.shape[:-1] != x.shape[2:] or not weight.shape[-1] or not weight.is_floating_point():
        _refuse("weight", weight, f"{(*x.shape[2:], 'K')}")
    if bias is not None and (bias.shape != x.shape[2:] or not bias.is_floating_point()):
        _refuse("bias", bias, f"{tuple(x.shape[2:])}")
    check_devices(x, weight=weight, bias=bias, index=index)
    if x.ndim == 3:
        x, weight = x.unsqueeze(2), weight.unsqueeze(0)
        bias = None if bias is None else bias.unsqueeze(0)
    rows = row_index(index, x.shape[2], x.shape[1])
    return Conv(x, weight, bias, rows, activation == "silu")


def _refuse(name: str, t: Tensor, expected: str) -> None:
    raise UserError(
        f"{name} is {t.dtype} {tuple(t.shape)}, not floating-point {expected}", where="causal_conv"
    )
