"""The selective scan in C++, compiled on first use (`cpu.cpp`); states and sums float32 or float64.

A batch row's gradients are summed in an order that the shapes alone decide, so results do not
depend on the number of threads, which is that of `torch.get_num_threads`.
"""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from lit_restore.ops import native
from lit_restore.ops.selective_scan.arguments import CHUNK, Grads, Scan, adjacent

_SOURCE = Path(__file__).with_suffix(".cpp")
_HEADERS = tuple(_SOURCE.with_name(f"cpu_{part}.h") for part in ("common", "forward", "backward"))
SLAB = 256
"""Channels whose shares of dB and dC are summed by one thread: work is divided by batch rows,
groups and slabs."""
LEAST = 1 << 17
"""State updates that are worth a thread."""


class _Tokens(ctypes.Structure):
    """Mirrors `Tokens` of cpu.cpp."""

    _fields_ = [("data", ctypes.c_void_p)] + [
        (name, ctypes.c_int64) for name in ("batch", "step", "group")
    ]


class _Scan(ctypes.Structure):
    """Mirrors `Scan` of cpu.cpp."""

    _fields_ = (
        [(name, _Tokens) for name in ("u", "dt", "B", "C", "z")]
        + [(name, ctypes.c_void_p) for name in ("A", "D", "bias", "index")]
        + [
            (name, ctypes.c_int64)
            for name in ("batch", "length", "groups", "channels", "states", "chunk")
        ]
        + [(name, ctypes.c_int32) for name in ("softplus", "workers")]
    )


class _Out(ctypes.Structure):
    """Mirrors `Out` of cpu.cpp."""

    _fields_ = [(name, ctypes.c_void_p) for name in ("y", "last", "kept")]


class _Back(ctypes.Structure):
    """Mirrors `Back` of cpu.cpp."""

    _fields_ = [
        (name, ctypes.c_void_p)
        for name in ("grad", "kept", "du", "ddt", "dz", "dB", "dC", "dA", "dD", "dbias")
    ] + [("slab", ctypes.c_int64)]


def unavailable() -> str | None:
    """Why there is no library, in a line; None where there is one."""
    return native.unavailable(_SOURCE, native.HEADER, *_HEADERS)


@cache
def _functions() -> ctypes.CDLL:
    return native.load(_SOURCE, native.HEADER, *_HEADERS)


def forward(s: Scan, *, save: bool) -> tuple[Tensor, Tensor, Tensor]:
    """See `arguments`."""
    wide = _readable(s)
    y = wide.u.new_empty(s.u.shape)
    last = wide.u.new_zeros(s.state_shape)
    kept = wide.u.new_empty(s.states_shape(save=save))
    if y.numel():
        out = _Out(*(native.address(t) for t in (y, last, kept if save else None)))
        _call("forward", wide, out)
    return y.to(s.u.dtype), last, kept


def backward(s: Scan, grad: Tensor, states: Tensor) -> Grads:
    """See `arguments`."""
    wide = _readable(s)
    batch, length, groups, channels = s.u.shape
    new = wide.u.new_zeros if s.u.numel() == 0 else wide.u.new_empty
    du, ddt = new(s.u.shape), new(s.u.shape)
    dz = None if s.z is None else new(s.u.shape)
    dB, dC = (new((-(-channels // SLAB), batch, length, groups, s.A.shape[-1])) for _ in range(2))
    dA, dD, dbias = new(s.state_shape), new((batch, *s.A.shape[:2])), new((batch, *s.A.shape[:2]))
    if s.u.numel():
        wide_grad = grad.to(s.state_dtype).contiguous()
        tensors = (wide_grad, states, du, ddt, dz, dB, dC, dA, dD, dbias)
        _call("backward", wide, _Back(*(native.address(t) for t in tensors), SLAB))
    return Grads(
        du, ddt, dA.sum(0), _summed(dB), _summed(dC), None if s.D is None else dD.sum(0), dz,
        None if s.dt_bias is None else dbias.sum(0),
    ).cast_like(s)  # fmt: skip


def _summed(parts: Tensor) -> Tensor:
    return parts[0] if parts.shape[0] == 1 else parts.sum(0)


def _readable(s: Scan) -> Scan:
    """In the type of the state, parameters and index contiguous, neighbouring channels adjacent."""
    w = s.widened()
    u, dt, B, C = (adjacent(t) for t in (w.u, w.dt, w.B, w.C))
    D, bias = (None if t is None else t.contiguous() for t in (w.D, w.dt_bias))
    z = None if w.z is None else adjacent(w.z)
    index = None if w.index is None else w.index.long().contiguous()
    return Scan(u, dt, w.A.contiguous(), B, C, D, z, bias, index, w.dt_softplus)


def _call(what: str, s: Scan, out: _Out | _Back) -> None:
    """A function of the library on prepared arguments."""
    batch, length, groups, channels = s.u.shape
    states = s.A.shape[-1]
    work = s.u.numel() * states
    workers = max(1, min(torch.get_num_threads(), work // LEAST))
    args = _Scan(
        *(_tokens(t) for t in (s.u, s.dt, s.B, s.C, s.z)),
        *(native.address(t) for t in (s.A, s.D, s.dt_bias, s.index)),
        batch, length, groups, channels, states, CHUNK, s.dt_softplus, workers,
    )  # fmt: skip
    kind = {torch.float32: "float", torch.float64: "double"}[s.u.dtype]
    failed = _functions()[f"scan_{what}_{kind}"](ctypes.byref(args), ctypes.byref(out))
    if failed:
        raise MemoryError("selective_scan")


def _tokens(x: Tensor | None) -> _Tokens:
    return _Tokens() if x is None else _Tokens(x.data_ptr(), *x.stride()[:3])
