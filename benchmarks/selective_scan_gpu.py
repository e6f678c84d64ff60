"""The selective scan on a GPU: each backend, mamba-ssm's kernel where there is one, and the floors.

For DiMSUM's shapes (a block's two mixers as two groups), in turns, timed by CUDA events: forward,
and forward with backward. The floors are what no kernel can be below: the exponentials on the
special-function units (16 a clock and multiprocessor; N for the decays and 4 for softplus and gate
of each token and channel), and the bytes that must be read and written, at the bandwidth that a
copy reaches here in the same run.

    python benchmarks/selective_scan_gpu.py [--rounds 20] [--out benchmarks/results/NAME.json]

Without a GPU it says so and measures nothing.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_restore.ops.selective_scan import dispatch, selective_scan
from lit_restore.ops.selective_scan.op import PACKAGE
from lit_restore.ops.selective_scan.shapes import grouped

STATES, GROUPS = 16, 2
SHAPES = [(64, 256, 1024), (4, 256, 1024), (32, 256, 1024), (256, 256, 1024), (32, 1024, 1024)]
"""(batch, L, D): D channels of each of two groups."""
TYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
UNITS = 16
"""Special functions a clock and multiprocessor, on all of sm_80 … sm_120."""
BUSY = 4_000_000
"""Clocks, about two milliseconds, in which Python queues a call."""
Way = Callable[..., Tensor]


def draw(batch: int, length: int, channels: int, dtype: torch.dtype) -> list[Tensor]:
    """u, dt, A, B, C, D, z, dt_bias as new Mamba layers have them, leaves on the GPU."""
    torch.manual_seed(0)
    tokens = (batch, length, GROUPS, channels)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, device="cuda").to(dtype)

    A = -torch.arange(1, STATES + 1, device="cuda").float().repeat(GROUPS, channels, 1)
    B, C = normal(*tokens[:3], STATES), normal(*tokens[:3], STATES)
    bias = torch.linspace(-7, -2, channels, device="cuda").repeat(GROUPS, 1)
    D = torch.randn(GROUPS, channels, device="cuda")
    given = [normal(*tokens), normal(*tokens), A, B, C, D, normal(*tokens), bias]
    return [t.requires_grad_() for t in given]


def ways(found: list[Tensor]) -> dict[str, Way]:
    """The backends that take these tensors, and each along a random order of the tokens."""
    order = torch.stack([torch.randperm(found[0].shape[1]) for _ in range(GROUPS)]).int().cuda()

    def along(backend: str, index: Tensor | None) -> Way:
        return lambda *args: selective_scan(*args, index=index, backend=backend)

    u, dt, A, B, C, D, z, bias = found
    small = grouped(u, dt, A, B, C, D, z, bias, None, True)
    several = {}
    for name, devices in dispatch.BACKENDS.items():
        if devices == ("cuda",) and dispatch.refusal(PACKAGE, name, "cuda", small) is None:
            several[name] = along(name, None)
            several[f"{name}, random order"] = along(name, order)
    return several


def seconds(way: Way, args: list[Tensor], *, backward: bool) -> float:
    """Of one run, on the GPU; its queue is kept busy meanwhile, so that Python's time is not in."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    grad = torch.ones_like(args[0])
    torch.cuda._sleep(BUSY)
    start.record()
    with torch.set_grad_enabled(backward):
        y = way(*args)
    if backward:
        torch.autograd.grad(y, args, grad)
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1e3


def copy_bandwidth() -> float:
    """Bytes a second, read and written, of a copy of a GiB."""
    source = torch.empty(1 << 28, device="cuda")
    target = torch.empty_like(source)
    times = []
    for _ in range(10):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        target.copy_(source)
        end.record()
        end.synchronize()
        times.append(float(start.elapsed_time(end)) / 1e3)
    return 2 * source.nbytes / min(times)


def bytes_of(args: list[Tensor], *, backward: bool) -> int:
    """What must be read and written: u, dt, z in, y out; backwards also grad in, three out."""
    u, _, _, B, C = args[:5]
    return (4 + 7 * backward) * u.nbytes + (1 + 2 * backward) * (B.nbytes + C.nbytes)


def floors(args: list[Tensor], bandwidth: float, clock: float) -> dict[str, float]:
    """Milliseconds that the special functions of the forward and the bytes take at least."""
    processors = torch.cuda.get_device_properties(0).multi_processor_count
    functions = args[0].numel() * (STATES + 4)
    return {
        "special_functions_forward_ms": functions / (UNITS * processors * clock) * 1e3,
        "bytes_forward_ms": bytes_of(args, backward=False) / bandwidth * 1e3,
        "bytes_forward_backward_ms": bytes_of(args, backward=True) / bandwidth * 1e3,
    }


def measured(args: list[Tensor], rounds: int, least: dict[str, float]) -> dict[str, Any]:
    """Of each way: median and minimum, bandwidth reached, share of the floor, peak memory."""
    report: dict[str, Any] = {}
    for backward in (False, True):
        several = ways(args)
        for way in several.values():
            for _ in range(3):
                seconds(way, args, backward=backward)
        times: dict[str, list[float]] = {name: [] for name in several}
        for _ in range(rounds):
            for name, way in several.items():
                times[name].append(seconds(way, args, backward=backward))
        what = "forward_backward" if backward else "forward"
        floor = max(value for key, value in least.items() if key.endswith(f"{what}_ms"))
        for name, each in times.items():
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            seconds(several[name], args, backward=backward)
            median = statistics.median(each)
            report.setdefault(name, {})[what] = {
                "median_ms": round(median * 1e3, 4),
                "min_ms": round(min(each) * 1e3, 4),
                "gb_per_second": round(bytes_of(args, backward=backward) / median / 1e9, 1),
                "times_the_floor": round(median * 1e3 / floor, 2),
                "peak_mib": round((torch.cuda.max_memory_allocated() - before) / 2**20, 1),
            }
    return report


def main() -> None:
    """Print the figures and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("no CUDA device: nothing is measured")
    device = torch.cuda.get_device_properties(0)
    bandwidth, clock = copy_bandwidth(), device.clock_rate * 1e3
    rows = []
    for batch, length, channels in SHAPES:
        for name, dtype in TYPES.items():
            args = draw(batch, length, channels, dtype)
            least = floors(args, bandwidth, clock)
            rows.append(
                {
                    "batch": batch, "L": length, "G": GROUPS, "D": channels, "dtype": name,
                    "floors": {key: round(value, 4) for key, value in least.items()},
                    "ways": measured(args, options.rounds, least),
                }
            )  # fmt: skip
            print(json.dumps(rows[-1], indent=1), flush=True)
    result = {
        "what": "one selective scan of two groups, 16 states, with bias, softplus, skip and gate",
        "machine": f"{device.name}, {device.multi_processor_count} multiprocessors, "
        f"{clock / 1e9:.2f} GHz, copies at {bandwidth / 1e12:.2f} TB/s; {platform.machine()}",
        "rounds": options.rounds,
        "rows": rows,
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
    }
    if options.out is not None:
        options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
