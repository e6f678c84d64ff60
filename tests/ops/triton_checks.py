"""Cases for the Triton kernels, run by this file as a program, and their machine code's needs."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from scan_cases import draw, relative

from lit_restore.ops.causal_conv import reference as conv_reference
from lit_restore.ops.causal_conv import triton as conv_backend
from lit_restore.ops.causal_conv.arguments import Conv
from lit_restore.ops.selective_scan import reference
from lit_restore.ops.selective_scan import triton as backend
from lit_restore.ops.selective_scan.arguments import Scan
from lit_restore.ops.selective_scan.shapes import grouped

CASES: dict[str, dict[str, Any]] = {
    "more channels than a block": {"states": 16, "length": 20, "channels": 70},
    "groups, each in its own order": {"states": 4, "length": 21, "groups": 2, "order": "random"},
    "one order for all, reversed": {"states": 16, "length": 8, "groups": 2, "order": "reversed"},
    "no D, z, bias": {"states": 3, "length": 5, "drop": ("D", "z", "dt_bias")},
    "bfloat16, in words": {"states": 16, "length": 17, "dtype": "bfloat16", "order": "random"},
    "bfloat16, an odd number of states": {"states": 5, "length": 6, "dtype": "bfloat16"},
    "one step of one state of one row": {"states": 1, "length": 1, "batch": 1},
    "32 states": {"states": 32, "length": 6},
    "delta above 20": {"states": 16, "length": 6, "shift": 21},
    "tiny delta": {"states": 16, "length": 18, "shift": -12, "drop": ("D",)},
    "no softplus, shared B and C": {"states": 4, "length": 9, "softplus": False, "shared": 5},
    "strided rows": {"states": 4, "length": 7, "strided": True},
}

CONVOLUTIONS: dict[str, dict[str, Any]] = {
    "conv: two segments, groups in their own orders": {"length": 70, "groups": 2, "index": True},
    "conv: shorter than the taps, more channels than a block": {"length": 3, "channels": 130},
    "conv: bfloat16, one tap, no activation": {
        "length": 65, "taps": 1, "dtype": torch.bfloat16, "silu": False,
    },
    "conv: six taps, no bias": {"length": 64, "taps": 6, "bias": False, "index": True},
}  # fmt: skip


def case(
    *, dtype: str = "float32", order: str = "", drop: tuple[str, ...] = (), softplus: bool = True,
    shift: float = 0.0, strided: bool = False, **shape: int,
) -> tuple[Scan, Scan]:  # fmt: skip
    """The arguments as the kernel gets them, and the same numbers in float64."""
    torch.manual_seed(0)
    c = draw(**shape).without(*drop)
    wide = {"A": torch.float32, "D": torch.float32, "dt_bias": torch.float32}
    low = {
        name: None if (t := getattr(c, name)) is None else t.detach()
        + (shift if name == "dt" else 0.0)
        for name in c.__dataclass_fields__
    }  # fmt: skip
    low = {
        n: None if t is None else t.to(wide.get(n, getattr(torch, dtype))) for n, t in low.items()
    }
    if strided:
        low = {
            n: t if t is None or n in wide else torch.cat((t, t), -1)[..., : t.shape[-1]]
            for n, t in low.items()
        }
    length, groups = c.u.shape[1], shape.get("groups", 1)
    index = None
    if order == "random":
        index = torch.stack([torch.randperm(length) for _ in range(groups)]).int()
        index = index if "groups" in shape else index[0]
    elif order == "reversed":
        index = torch.arange(length).flip(0)
    high = [None if t is None else t.double() for t in low.values()]
    return (
        grouped(*low.values(), index, softplus),  # type: ignore[arg-type]
        grouped(*high, index, softplus),  # type: ignore[arg-type]
    )


def errors(s: Scan, true: Scan, kernel: Any = backend) -> dict[str, float]:
    """Of everything a backend gives back, relative to the reference's largest entry."""
    y, last, kept = kernel.forward(s, save=True)
    y_, last_, kept_ = reference.forward(true, save=True)
    grad = torch.randn(y_.shape, dtype=torch.float64).to(y.dtype)
    found, expected = kernel.backward(s, grad, kept), reference.backward(true, grad.double(), kept_)
    report = {"y": relative(y, y_), "last": relative(last, last_)}
    report["kept"] = relative(kept, kept_)
    for name in ("u", "dt", "A", "B", "C", "D", "z", "dt_bias"):
        mine, theirs = getattr(found, name), getattr(expected, name)
        assert (mine is None) == (theirs is None), name
        if mine is not None:
            assert mine.dtype == getattr(s, name).dtype, name
            assert mine.is_contiguous(), name
            report[name] = relative(mine, theirs)
    return report


def conv_errors(
    *, length: int, groups: int = 1, channels: int = 5, taps: int = 4, bias: bool = True,
    index: bool = False, silu: bool = True, dtype: torch.dtype = torch.float32,
) -> dict[str, float]:  # fmt: skip
    """The same of the convolution, whose x is a strided view."""
    torch.manual_seed(0)
    x = torch.randn(2, length, groups, 2 * channels)[..., :channels].to(dtype)
    weight = torch.randn(groups, channels, taps)
    shift = torch.randn(groups, channels) if bias else None
    order = torch.stack([torch.randperm(length) for _ in range(groups)]) if index else None
    c = Conv(x, weight, shift, order, silu)
    wide = None if shift is None else shift.double()
    true = Conv(x.double(), weight.double(), wide, order, silu)
    grad = torch.randn(x.shape, dtype=torch.float64).to(dtype)
    found = (conv_backend.forward(c), *conv_backend.backward(c, grad))
    expected = (conv_reference.forward(true), *conv_reference.backward(true, grad.double()))
    return {
        name: relative(mine, theirs)
        for name, mine, theirs in zip(("y", "x", "weight", "bias"), found, expected, strict=True)
        if mine is not None and theirs is not None
    }


@dataclass(frozen=True)
class Limits:
    """What a kernel may need: registers and bytes of stack of a thread, instructions of a lane in
    the main loop for each state update."""

    registers: int
    stack: int
    per_update: float


@dataclass(frozen=True)
class Needs(Limits):
    """What it does need."""

    code: str


class _Absent:
    """Stands in for Triton's driver: says what GPU there would be, launches nothing."""

    def __init__(self, arch: int) -> None:
        from triton.backends.compiler import GPUTarget

        self._target = GPUTarget("cuda", arch, 32)

    def get_current_device(self) -> int:
        return self._target.arch  # type: ignore[no-any-return]

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> Any:
        return self._target


def cubins(call: Callable[[], object], arch: int) -> list[bytes]:
    """Machine code of the kernels that a call would launch, compiled as Triton compiles them for
    its arguments, for a GPU that need not be here.

    Args:
        call: launches on CPU tensors; what it computes is nonsense.
        arch: 90 for sm_90.
    """
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    made: list[bytes] = []
    run, active = JITFunction.run, driver._active

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        kernel = run(self, *args, grid=grid, warmup=True, **options)
        made.append(kernel.asm["cubin"])
        return kernel

    driver.set_active(_Absent(arch))
    JITFunction.run = compile_only
    try:
        call()
    finally:
        JITFunction.run, driver._active = run, active
    return made


def resources(kernel: str, arch: int, dtype: str, states: int = 16) -> Needs:
    """What a kernel of the scan needs, along an index and with everything that there can be.

    Args:
        kernel: forward or backward.
        arch: 90 for sm_90.
        dtype: bfloat16 or float32.
        states: N.
    """
    s, _ = case(
        states=states, length=32, channels=1024, groups=2, batch=32, dtype=dtype, order="random"
    )
    kept = torch.empty(s.states_shape(save=True))
    calls: dict[str, Callable[[], object]] = {
        "forward": lambda: backend.forward(s, save=False),
        "backward": lambda: backend.backward(s, s.u, kept),
    }
    (found,) = cubins(calls[kernel], arch)
    lanes = {"forward": 64, "backward": 32}[kernel]
    return needs(found, main_loop_updates=states * lanes / 32, kernel=kernel)


def conv_cubin(kernel: str, arch: int) -> bytes:
    """Machine code of the convolution's forward or backward, in bfloat16."""
    x = torch.zeros(2, 64, 2, 256, dtype=torch.bfloat16)
    order = torch.arange(64).int().expand(2, -1)
    c = Conv(x, torch.zeros(2, 256, 4), torch.zeros(2, 256), order, True)
    calls: dict[str, Callable[[], object]] = {
        "forward": lambda: conv_backend.forward(c),
        "backward": lambda: conv_backend.backward(c, x),
    }
    (found,) = cubins(calls[kernel], arch)
    return found


def needs(cubin: bytes, *, main_loop_updates: float, kernel: str) -> Needs:
    """Registers, stack, and the instructions of the loops.

    Args:
        cubin: for one architecture, with one kernel.
        main_loop_updates: state updates of a lane in one step.
        kernel: in the backward a turn of the inner loop is four steps, after twelve for four turns.
    """
    import triton

    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = subprocess.run(
            [tool, "-res-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
        code = subprocess.run(
            [tool, "-sass", file.name], capture_output=True, text=True, check=True
        ).stdout
    registers, stack = (int(re.search(rf"{k}:(\d+)", usage)[1]) for k in ("REG", "STACK"))  # type: ignore[index]
    bodies = loops(code)
    if kernel == "forward":
        per_step = float(max(bodies))
    else:
        once, four = sorted(bodies)[:2]
        per_step = (12 * once + 4 * four) / 16
    return Needs(registers, stack, per_step / main_loop_updates, code)


def loops(code: str) -> list[int]:
    """Instructions between each backward jump and its target."""
    found = re.findall(r"^\s+/\*([0-9a-f]{4,5})\*/\s+(.*?);", code, re.MULTILINE)
    number = {int(address, 16): k for k, (address, _) in enumerate(found)}
    bodies = []
    for k, (address, text) in enumerate(found):
        jump = re.search(r"BRA(?:\.\w+)* .*?0x([0-9a-f]+)", text)
        if jump and int(jump[1], 16) < int(address, 16):
            bodies.append(k - number[int(jump[1], 16)] + 1)
    return bodies


if __name__ == "__main__":
    found = {name: errors(*case(**given)) for name, given in CASES.items()}
    found |= {name: conv_errors(**given) for name, given in CONVOLUTIONS.items()}
    Path(sys.argv[1]).write_text(json.dumps(found))
