"""The selective scan on the CPU: what upstream's reference costs, our loop, compiled, our C++.

Four ways to the same numbers, float32, timed in turns: (a) `materialised`: decays and inputs of
(batch, D, L, N) at once and a loop that indexes them, as mamba-ssm's CPU-capable reference does it
(written here from the formula); (b) `loop`: `backend="reference"`; (c) `compiled`: such a loop by
`torch.compile`, which writes out every step (`compile_s` is what that takes, forward and forward
with backward); (d) `cpp`: `backend="cpu"`.
Memory is the growth of the process's peak over forward and backward, in a process of its own for
each length.

    python benchmarks/selective_scan.py [--rounds 5] [--out benchmarks/results/selective_scan.json]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from lit_restore.ops import selective_scan

BATCH, CHANNELS, STATES, LENGTH = 8, 384, 16, 256
LENGTHS = (128, 256, 512, 1024)
Way = Callable[..., Tensor]


def draw(length: int) -> list[Tensor]:
    """u, dt, A, B, C, D, z, dt_bias as a new Mamba layer has them, leaves."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    A = -torch.arange(1, STATES + 1).float().repeat(CHANNELS, 1)
    tokens = (BATCH, length, CHANNELS)
    B, C = normal(BATCH, length, STATES), normal(BATCH, length, STATES)
    bias = torch.linspace(-7, -2, CHANNELS)  # softplus: 1e-3 … 1e-1
    given = [normal(*tokens), normal(*tokens), A, B, C, normal(CHANNELS), normal(*tokens), bias]
    return [t.requires_grad_() for t in given]


def materialised(
    u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, bias: Tensor
) -> Tensor:
    """All decays and inputs first, then step after step of them."""
    u, dt, z, B, C = (t.mT for t in (u, dt, z, B, C))
    delta = F.softplus(dt + bias[:, None])
    decay = torch.exp(torch.einsum("bdl,dn->bdln", delta, A))
    inputs = torch.einsum("bdl,bnl,bdl->bdln", delta, B, u)
    h = torch.zeros_like(inputs[:, :, 0])
    out = []
    for t in range(u.shape[2]):
        h = decay[:, :, t] * h + inputs[:, :, t]
        out.append(torch.einsum("bdn,bn->bd", h, C[:, :, t]))
    return ((torch.stack(out, 2) + u * D[:, None]) * F.silu(z)).mT


def loop(*args: Tensor) -> Tensor:
    """Plain PyTorch, no (batch, D, L, N)."""
    return selective_scan(*args, backend="reference")


def unrolled(
    u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, bias: Tensor
) -> Tensor:
    """The loop of `backend="reference"` without its options, which the compiler can follow."""
    delta = F.softplus(dt + bias)
    h = u.new_zeros(u.shape[0], *A.shape)
    out = []
    for t in range(u.shape[1]):
        decay = torch.exp(delta[:, t, :, None] * A)
        h = decay * h + (delta[:, t] * u[:, t])[..., None] * B[:, t, None]
        out.append((h * C[:, t, None]).sum(-1))
    return (torch.stack(out, 1) + D * u) * F.silu(z)


compiled = torch.compile(unrolled, fullgraph=True, dynamic=False)


def cpp(*args: Tensor) -> Tensor:
    """The C++ kernel."""
    return selective_scan(*args, backend="cpu")


WAYS: dict[str, Way] = {
    "materialised": materialised,
    "loop": loop,
    "compiled": compiled,
    "cpp": cpp,
}
TIMES_A_TURN = {"materialised": 1, "loop": 3, "compiled": 3, "cpp": 15}


def milliseconds(way: Way, args: list[Tensor], *, backward: bool) -> float:
    """Wall-clock time of one run."""
    start = time.perf_counter()
    with torch.set_grad_enabled(backward):
        y = way(*args)
    if backward:
        torch.autograd.grad(y, args, torch.ones_like(y))
    return (time.perf_counter() - start) * 1e3


def timings(rounds: int, *, backward: bool) -> tuple[dict[str, dict[str, float]], float]:
    """Median and minimum of each way, in turns; the fast ones several times a turn. And what the
    first run of the compiled one took, in seconds.
    """
    args = draw(LENGTH)
    found: dict[str, list[float]] = {name: [] for name in WAYS}
    first = {name: milliseconds(way, args, backward=backward) for name, way in WAYS.items()}
    for _ in range(rounds):
        for name, way in WAYS.items():
            for _ in range(TIMES_A_TURN[name]):
                found[name].append(milliseconds(way, args, backward=backward))
    times = {
        name: {"median_ms": round(statistics.median(each), 2), "min_ms": round(min(each), 2)}
        for name, each in found.items()
    }
    return times, round(first["compiled"] / 1e3, 1)


def peak_mib() -> float:
    """Of this process; `ru_maxrss` starts with that of the parent."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def print_memory(name: str, length: int) -> None:
    """In a process of its own: what forward and backward of one way add to the peak, MiB."""
    milliseconds(WAYS[name], draw(8), backward=True)
    args = draw(length)
    before = peak_mib()
    milliseconds(WAYS[name], args, backward=True)
    print(round(peak_mib() - before, 1))


def memory(name: str, length: int) -> float:
    command = [sys.executable, __file__, "--memory-of", name, str(length)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout)


def ratios(times: dict[str, dict[str, float]], key: str) -> dict[str, float]:
    ms = {name: each[key] for name, each in times.items()}
    return {
        "materialised_over_loop": round(ms["materialised"] / ms["loop"], 1),
        "loop_over_cpp": round(ms["loop"] / ms["cpp"], 1),
        "compiled_over_cpp": round(ms["compiled"] / ms["cpp"], 1),
        "materialised_over_cpp": round(ms["materialised"] / ms["cpp"], 1),
    }


def main() -> None:
    """Print the figures and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--memory-of", nargs=2, metavar=("WAY", "LENGTH"), help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.memory_of:
        print_memory(args.memory_of[0], int(args.memory_of[1]))
        return
    load = os.getloadavg()[0]
    measured = {
        "forward": timings(args.rounds, backward=False),
        "forward_backward": timings(args.rounds, backward=True),
    }
    times = {key: value[0] for key, value in measured.items()}
    result = {
        "what": "milliseconds of one selective scan with bias, softplus, skip and gate",
        "shape": {"batch": BATCH, "D": CHANNELS, "N": STATES, "L": LENGTH, "dtype": "float32"},
        "rounds": args.rounds,
        "times": times,
        "compile_s": {key: value[1] for key, value in measured.items()},
        "ratios_of_medians": {key: ratios(value, "median_ms") for key, value in times.items()},
        "ratios_of_minima": {key: ratios(value, "min_ms") for key, value in times.items()},
        "peak_mib_of_forward_backward": {
            name: {str(length): memory(name, length) for length in LENGTHS if _fits(name, length)}
            for name in WAYS
            if name != "compiled"
        },
        "machine": f"{args.threads} thread(s) of a shared {platform.machine()} virtual machine, "
        f"{torch.backends.cpu.get_cpu_capability()}, no GPU",
        "load_before": round(load, 2),
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
    }
    text = json.dumps(result, indent=1)
    print(text)
    if args.out is not None:
        args.out.write_text(text + "\n")


def _fits(name: str, length: int) -> bool:
    """The materialised backward takes time with the square of the length."""
    return name != "materialised" or length <= LENGTH


if __name__ == "__main__":
    main()
