"""The selective scan in CUDA C++ (`cuda_forward.cu`, `cuda_backward.cu`), compiled on first use.

For NVIDIA's GPUs from compute capability 8.0. States and sums are float32. Nothing is added
atomically: a run gives the same bits every time. Sums over blocks and rows of the batch are left
to PyTorch.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from lit_restore.ops import nvrtc
from lit_restore.ops.native import address
from lit_restore.ops.selective_scan.arguments import (
    CHUNK,
    Grads,
    Scan,
    adjacent,
    in_pairs,
    not_single,
)

_FOLDER = Path(__file__).parent
_HEADER = _FOLDER / "cuda_common.cuh"
_KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
MOST_STATES = 64
"""Beyond it the states of a channel are more than registers hold."""
OLDEST = (8, 0)
"""Compute capability that has instructions for bfloat16."""
THREADS = 64
"""Of a block of the forward: small ones end evenly."""
TILE = 2 * CHUNK
"""Steps whose B and C are in shared memory at once."""
ENOUGH = 1 << 16
"""Channels of all scans together from which on the forward gives a thread two."""
_FAR = 1 << 31


class _Tokens(ctypes.Structure):
    """Mirrors `Tokens` of cuda_common.cuh."""

    _fields_ = [
        ("data", ctypes.c_void_p), ("batch", ctypes.c_int64), ("group", ctypes.c_int64),
        ("step", ctypes.c_int32),
    ]  # fmt: skip


class _Scan(ctypes.Structure):
    """Mirrors `Scan` of cuda_common.cuh."""

    _fields_ = (
        [(name, _Tokens) for name in ("u", "dt", "B", "C", "z")]
        + [(name, ctypes.c_void_p) for name in ("A", "D", "bias", "index")]
        + [(name, ctypes.c_int32) for name in ("batch", "length", "groups", "channels", "blocks")]
    )


class _Forward(ctypes.Structure):
    """Mirrors `Forward` of cuda_common.cuh."""

    _fields_ = [("s", _Scan)] + [(name, ctypes.c_void_p) for name in ("y", "last", "kept")]


class _Backward(ctypes.Structure):
    """Mirrors `Backward` of cuda_common.cuh."""

    _fields_ = [("s", _Scan)] + [
        (name, ctypes.c_void_p)
        for name in ("grad", "kept", "du", "ddt", "dz", "dB", "dC", "dA", "dD", "dbias")
    ]


@dataclass(frozen=True)
class Call:
    """A kernel, its argument, its grid. The tensors behind the addresses are the caller's."""

    source: nvrtc.Source
    name: str
    args: ctypes.Structure
    blocks: int
    threads: int


@cache
def unavailable() -> str | None:
    """Why it cannot run here, in a line."""
    if torch.version.cuda is None:
        return "this PyTorch is not built for CUDA"
    return nvrtc.unavailable()


def unfit(s: Scan) -> str | None:
    """Why these arguments are not for it, in a line."""
    why = not_single(s.u, s.dt, s.B, s.C, s.z)
    if why is not None:
        return why
    if s.A.shape[-1] > MOST_STATES:
        return f"{s.A.shape[-1]} states are more than {MOST_STATES}"
    if 4 * s.u.shape[2] * s.u.shape[3] >= _FAR:
        return "a token is more than 2 GiB"
    return _old(s.u.device) if s.u.is_cuda else None


@cache
def _old(device: torch.device) -> str | None:
    capability = torch.cuda.get_device_capability(device)
    if capability < OLDEST:
        return f"compute capability {capability[0]}.{capability[1]} is less than 8.0"
    if nvrtc.architecture(capability) is None:
        return f"NVRTC does not know compute capability {capability[0]}.{capability[1]}"
    return None


def forward(s: Scan, *, save: bool) -> tuple[Tensor, Tensor, Tensor]:
    """See `arguments`.

    Raises:
        NvrtcError: the kernel cannot be compiled or launched.
    """
    x = _Prepared(s)
    y = torch.empty(s.u.shape, dtype=x.u.dtype, device=s.u.device)
    last = torch.zeros(s.state_shape, dtype=torch.float32, device=s.u.device)
    kept = last.new_empty(s.states_shape(save=save))
    if y.numel():
        batch, _, groups, channels = s.u.shape
        states = s.A.shape[-1]
        per = 2 if states <= 32 and batch * groups * channels >= ENOUGH else 1
        blocks = -(-channels // (THREADS * per))
        args = _Forward(x.scan(blocks), *(address(t) for t in (y, last, kept)))
        # Of 65536 registers a thread of one of eight blocks has 128.
        defines = {"THREADS": THREADS, "TILE": TILE, "SAVE": int(save),
                   "RESIDENT": 8 if per * states <= 32 else 4}  # fmt: skip
        source = x.source("cuda_forward.cu", per, (x.u, x.dt, x.z, y), defines)
        _run(Call(source, "scan_forward", args, blocks * batch * groups, THREADS), s.u.device)
    return y.to(s.u.dtype), last, kept


def backward(s: Scan, grad: Tensor, states: Tensor) -> Grads:
    """See `arguments`.

    Raises:
        NvrtcError: the kernel cannot be compiled or launched.
    """
    x = _Prepared(s)
    batch, length, groups, channels = s.u.shape
    count = s.A.shape[-1]
    per = 2 if count <= 16 else 1
    warps = 4 if count <= 16 else 2 if count <= 32 else 1  # as many as share 48 KiB
    blocks = -(-channels // (8 * per * warps))
    new = torch.empty if s.u.numel() else torch.zeros

    def wide(*shape: int) -> Tensor:
        return new(shape, dtype=torch.float32, device=s.u.device)

    given, states = grad.to(x.u.dtype).contiguous(), states.contiguous()
    if states.data_ptr() % 8:  # it is read in pairs; a view at an odd place can be contiguous
        states = states.clone()
    du, ddt = (new(s.u.shape, dtype=x.u.dtype, device=s.u.device) for _ in range(2))
    dz = None if s.z is None else torch.empty_like(du)
    dB, dC = (wide(blocks, batch, length, groups, count) for _ in range(2))
    dA = wide(batch, groups, channels, count)
    dD, dbias = (None if t is None else wide(batch, groups, channels) for t in (s.D, s.dt_bias))
    if s.u.numel():
        tensors = (given, states, du, ddt, dz, dB, dC, dA, dD, dbias)
        args = _Backward(x.scan(blocks), *(address(t) for t in tensors))
        # With 168 registers a thread three blocks fit; more states want all there are.
        defines = {"WARPS": warps, "RESIDENT": 3 if count <= 16 else 1}
        source = x.source("cuda_backward.cu", per, (x.u, x.dt, x.z, given), defines)
        _run(Call(source, "scan_backward", args, blocks * batch * groups, 32 * warps), s.u.device)
    dD, dbias = (None if t is None else t.sum(0) for t in (dD, dbias))
    return Grads(du, ddt, dA.sum(0), dB.sum(0), dC.sum(0), dD, dz, dbias).cast_like(s)


class _Prepared:
    """The arguments as the kernels take them; held as long as their addresses are used."""

    def __init__(self, s: Scan) -> None:
        given = (s.u, s.dt, s.B, s.C, *(() if s.z is None else (s.z,)))
        kinds = {t.dtype for t in given}
        kind = kinds.pop() if len(kinds) == 1 else torch.float32
        self.u, self.dt, self.B, self.C = (_readable(t, kind) for t in given[:4])
        self.z = None if s.z is None else _readable(s.z, kind)
        self.A = s.A.float().contiguous()
        self.D, self.bias = (
            None if t is None else t.float().contiguous() for t in (s.D, s.dt_bias)
        )
        self.index = None if s.index is None else s.index.to(torch.int32).contiguous()
        self.softplus = s.dt_softplus

    def scan(self, blocks: int) -> _Scan:
        """What both kernels read; `blocks` share the channels of one scan."""
        batch, length, groups, channels = self.u.shape
        return _Scan(
            *(_tokens(t) for t in (self.u, self.dt, self.B, self.C, self.z)),
            *(address(t) for t in (self.A, self.D, self.bias, self.index)),
            batch, length, groups, channels, blocks,
        )  # fmt: skip

    def source(
        self, name: str, per: int, pairs: tuple[Tensor | None, ...], defines: dict[str, int]
    ) -> nvrtc.Source:
        """A kernel's file and what is known when it is compiled.

        Args:
            name: the file's.
            per: channels of a lane.
            pairs: what is read or written by the channels of a lane at once.
            defines: the kernel's own.
        """
        paired = per == 2 and all(in_pairs(t) for t in pairs if t is not None)
        known = {
            "N": self.A.shape[-1], "CHUNK": CHUNK, "PER": per, "KIND": _KINDS[self.u.dtype],
            "PAIRS": paired, "SOFTPLUS": self.softplus, "HAS_D": self.D is not None,
            "HAS_Z": self.z is not None, "HAS_BIAS": self.bias is not None,
            "HAS_INDEX": self.index is not None, **defines,
        }  # fmt: skip
        numbers = tuple((key, int(value)) for key, value in known.items())
        return nvrtc.Source(_FOLDER / name, (_HEADER,), numbers)


def _run(call: Call, device: torch.device) -> None:
    nvrtc.kernel(call.source, call.name, device).launch(call.blocks, call.threads, call.args)


def _readable(x: Tensor, kind: torch.dtype) -> Tensor:
    """Of a type, neighbours along the last axis adjacent, and tokens less than 2 GiB apart."""
    x = x.to(kind)
    near = x.stride(1) * x.element_size() < _FAR
    return adjacent(x) if near else x.contiguous()


def _tokens(x: Tensor | None) -> _Tokens:
    if x is None:
        return _Tokens()
    return _Tokens(x.data_ptr(), *(step * x.element_size() for step in x.stride()[:3][::2]),
                   x.stride(1) * x.element_size())  # fmt: skip
