"""The causal convolution in C++, compiled on first use (`cpu.cpp`); sums float32 or float64.

Results do not depend on the number of threads, which is that of `torch.get_num_threads`.
"""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from lit_restore.ops import native
from lit_restore.ops.causal_conv.arguments import Conv
from lit_restore.ops.selective_scan.arguments import adjacent

_SOURCE = Path(__file__).with_suffix(".cpp")
LEAST = 1 << 18
"""Products that are worth a thread."""


class _Conv(ctypes.Structure):
    """Mirrors `Conv` of cpu.cpp."""

    _fields_ = (
        [("x", ctypes.c_void_p)]
        + [(name, ctypes.c_int64) for name in ("x_batch", "x_step", "x_group")]
        + [(name, ctypes.c_void_p) for name in ("weight", "bias", "index")]
        + [(name, ctypes.c_int64) for name in ("batch", "length", "groups", "channels", "taps")]
        + [(name, ctypes.c_int32) for name in ("silu", "workers")]
    )


class _Back(ctypes.Structure):
    """Mirrors `Back` of cpu.cpp."""

    _fields_ = [(name, ctypes.c_void_p) for name in ("grad", "dx", "dweight", "dbias")]


def unavailable() -> str | None:
    """Why there is no library, in a line; None where there is one."""
    return native.unavailable(_SOURCE, native.HEADER)


@cache
def _functions() -> ctypes.CDLL:
    return native.load(_SOURCE, native.HEADER)


def forward(c: Conv) -> Tensor:
    """See `arguments`."""
    wide = _readable(c)
    y = wide.x.new_empty(c.x.shape)
    if y.numel():
        _call("forward", wide, ctypes.c_void_p(y.data_ptr()))
    return y.to(c.x.dtype)


def backward(c: Conv, grad: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """See `arguments`."""
    wide = _readable(c)
    batch = c.x.shape[0]
    dx = wide.x.new_empty(c.x.shape)
    dweight = wide.x.new_zeros((batch, *c.weight.shape))
    dbias = wide.x.new_zeros((batch, *c.weight.shape[:2]))
    if dx.numel():
        wide_grad = grad.to(wide.x.dtype).contiguous()
        tensors = (wide_grad, dx, dweight, dbias)
        _call("backward", wide, ctypes.byref(_Back(*(native.address(t) for t in tensors))))
    bias = None if c.bias is None else dbias.sum(0).to(c.bias.dtype)
    return dx.to(c.x.dtype), dweight.sum(0).to(c.weight.dtype), bias


def _readable(c: Conv) -> Conv:
    """In the type of the sums, all but x contiguous, neighbouring channels of x adjacent."""
    wide = torch.promote_types(c.x.dtype, torch.float32)
    bias = None if c.bias is None else c.bias.to(wide).contiguous()
    index = None if c.index is None else c.index.long().contiguous()
    weight = c.weight.to(wide).contiguous()
    return Conv(adjacent(c.x.to(wide)), weight, bias, index, c.silu)


def _call(what: str, c: Conv, out: object) -> None:
    """A function of the library on prepared arguments."""
    taps = c.weight.shape[-1]
    workers = max(1, min(torch.get_num_threads(), c.x.numel() * taps // LEAST))
    args = _Conv(
        c.x.data_ptr(), *c.x.stride()[:3],
        *(native.address(t) for t in (c.weight, c.bias, c.index)),
        *c.x.shape, taps, c.silu, workers,
    )  # fmt: skip
    kind = {torch.float32: "float", torch.float64: "double"}[c.x.dtype]
    if _functions()[f"conv_{what}_{kind}"](ctypes.byref(args), out):
        raise MemoryError("causal_conv")
