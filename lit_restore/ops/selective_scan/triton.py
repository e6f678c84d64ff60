"""The selective scan in Triton (`triton_forward`, `triton_backward`): any GPU that Triton knows.

States and sums are float32. Nothing is added atomically: a run gives the same bits every time.
"""

from __future__ import annotations

import importlib.util
import math
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import torch
from torch import Tensor

from lit_restore.ops.selective_scan.arguments import (
    CHUNK,
    Grads,
    Scan,
    adjacent,
    in_pairs,
    not_single,
)

_LOG2_E = math.log2(math.e)
MOST_STATES = 64
"""Beyond it the states of a channel are more than registers hold."""


@cache
def unavailable() -> str | None:
    """Why it cannot run here, in a line. With a GPU Triton is started: it needs a C compiler."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    if not torch.cuda.is_available():
        return None
    try:
        from triton.runtime import driver

        _ = driver.active.utils
    except Exception as error:  # no compiler, no headers, no place for its files …
        return f"Triton does not start ({str(error).partition(chr(10))[0]})"
    return None


def unfit(s: Scan) -> str | None:
    """Why these arguments are not for it, in a line."""
    why = not_single(s.u, s.dt, s.B, s.C, s.z)
    if why is None and s.A.shape[-1] > MOST_STATES:
        why = f"{s.A.shape[-1]} states are more than {MOST_STATES}"
    return why


def forward(s: Scan, *, save: bool) -> tuple[Tensor, Tensor, Tensor]:
    """See `arguments`."""
    from lit_restore.ops.selective_scan.triton_forward import scan_forward

    x = _Prepared(s)
    y = s.u.new_empty(s.u.shape)
    last = torch.zeros(s.state_shape, dtype=torch.float32, device=s.u.device)
    kept = last.new_empty(s.states_shape(save=save))
    if y.numel():
        batch, length, groups, channels = s.u.shape
        states = s.A.shape[-1]
        lanes = 64 if batch * groups * channels >= 1 << 16 and states <= 16 else 32
        decay = (x.A * _LOG2_E).mT.contiguous()
        with device_of(s.u):
            scan_forward[(batch * groups, -(-channels // lanes))](
                x.u, x.dt, x.B, x.C, x.z, decay, x.D, x.bias, x.index,
                y, last, kept, length, groups, channels, -(-length // CHUNK), *x.strides,
                STATES=tuple(range(states)), N=states, WIDTH=lanes, SAVE=save,
                WORDS=all(t.dtype == torch.bfloat16 and in_pairs(t) for t in (x.B, x.C)),
                **x.options, **launch(1),
            )  # fmt: skip
    return y, last, kept


def backward(s: Scan, grad: Tensor, states: Tensor) -> Grads:
    """See `arguments`."""
    from lit_restore.ops.selective_scan.triton_backward import scan_backward

    x = _Prepared(s)
    batch, length, groups, channels = s.u.shape
    count = s.A.shape[-1]
    room = 1 << max(0, count - 1).bit_length()
    width = max(8, min(64, 512 // room))
    blocks = -(-channels // width)
    new = torch.empty if s.u.numel() else torch.zeros
    on: dict[str, Any] = {"dtype": torch.float32, "device": s.u.device}

    def like(t: Tensor) -> Tensor:
        return new(t.shape, dtype=t.dtype, device=t.device)

    du, ddt, dz = like(s.u), like(s.dt), None if s.z is None else like(s.z)
    dB, dC = (new((max(1, blocks), batch, length, groups, count), **on) for _ in range(2))
    dA, dD, dbias = new(s.state_shape, **on), *(new(s.state_shape[:3], **on) for _ in range(2))
    starts = torch.empty(max(1, blocks) * batch * groups * CHUNK // 4 * width * room, **on)
    if s.u.numel():
        decay = (x.A * _LOG2_E).contiguous()
        with device_of(s.u):
            scan_backward[(batch * groups, blocks)](
                x.u, x.dt, x.B, x.C, x.z, grad.contiguous(), states.contiguous(), decay,
                x.D, x.bias, x.index, du, ddt, du if dz is None else dz, dB, dC, dA, dD, dbias,
                starts, batch, length, groups, channels, 1, *x.strides,
                N=count, ROOM=room, WIDTH=width, **x.options, **launch(1),
            )  # fmt: skip
    return Grads(
        du, ddt, dA.sum(0), dB.sum(0), dC.sum(0), None if s.D is None else dD.sum(0), dz,
        None if s.dt_bias is None else dbias.sum(0),
    ).cast_like(s)  # fmt: skip


class _Prepared:
    """The arguments as the kernels take them; absent tensors are stood in for by another."""

    def __init__(self, s: Scan) -> None:
        self.u, self.dt, self.B, self.C = (adjacent(t) for t in (s.u, s.dt, s.B, s.C))
        self.z = self.u if s.z is None else adjacent(s.z)
        self.A = s.A.float()
        self.D, self.bias = (
            self.A if t is None else t.float().contiguous() for t in (s.D, s.dt_bias)
        )
        self.index = self.u if s.index is None else s.index.contiguous()
        streams = (self.u, self.dt, self.B, self.C, self.z)
        self.strides = [step for t in streams for step in t.stride()[:3]]
        self.options = {
            "CHUNK": CHUNK, "SOFTPLUS": s.dt_softplus, "HAS_D": s.D is not None,
            "HAS_Z": s.z is not None, "HAS_BIAS": s.dt_bias is not None,
            "HAS_INDEX": s.index is not None,
        }  # fmt: skip


def device_of(x: Tensor) -> AbstractContextManager[object]:
    """What Triton launches on is the current device, whatever the tensors' is."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


def launch(warps: int) -> dict[str, Any]:
    """Options of a launch.

    More than one stage corrupts a recurrence with some versions of Triton on Blackwell.
    """
    return {"num_warps": warps, "num_stages": 1, "enable_fp_fusion": True}
