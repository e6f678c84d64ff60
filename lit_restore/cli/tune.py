"""`lit-restore tune`: measure the scan's backends on this GPU, for the table of `ops…tuned`.

Entries of other architectures stay; those of this one are measured anew. The file is replaced at
the end, whole.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from lit_restore.errors import ExitCode, SaveError, UserError
from lit_restore.io import fs
from lit_restore.ops.selective_scan import dispatch, tuned
from lit_restore.ops.selective_scan.op import PACKAGE
from lit_restore.ops.selective_scan.scan import selective_scan
from lit_restore.ops.selective_scan.shapes import grouped
from lit_restore.ops.selective_scan.tuned import Entry

TABLE = Path(tuned.__file__).with_name("tuned.json")
LENGTHS = (64, 256, 1024)
CHANNELS = (8192, 32768, 131072, 524288)
"""batch · groups · D, with 2 groups of 1024."""
TYPES = (torch.float32, torch.bfloat16)
ROUNDS = 10
_BUSY = 4_000_000  # clocks, about two milliseconds
Timer = Callable[[Callable[[], object]], float]


def register(parser: argparse.ArgumentParser) -> None:
    """Where the table is."""
    parser.add_argument(
        "--out", type=Path, default=TABLE, metavar="FILE", help="default: the package's own table"
    )


def run(args: argparse.Namespace) -> int:
    """Measure and write.

    Raises:
        UserError: there is no GPU.
        SaveError: the disk refused.
    """
    if not torch.cuda.is_available():
        raise UserError("no CUDA device to measure on", where="tune")
    u, dt, A, B, C, D, z, bias = _draw(8, 1, torch.float32, "cuda")
    small = grouped(u, dt, A, B, C, D, z, bias, None, True)
    names = [
        name
        for name, devices in dispatch.BACKENDS.items()
        if devices == ("cuda",)
        and name not in dispatch.ON_REQUEST
        and dispatch.refusal(PACKAGE, name, "cuda", small) is None
    ]
    major, minor = torch.cuda.get_device_capability()
    entries = measure(f"sm_{major}{minor}", names, "cuda", milliseconds)
    update(args.out, entries)
    print(f"{args.out}: {len(entries)} entries of sm_{major}{minor}")
    return int(ExitCode.OK)


def measure(architecture: str, names: Sequence[str], device: str, timer: Timer) -> list[Entry]:
    """One entry for each type, number of channels and length that fits into memory.

    Args:
        architecture: its name in the entries.
        names: backends.
        device: where to run them.
        timer: milliseconds of a call.
    """
    entries = []
    for dtype in TYPES:
        for channels in CHANNELS:
            for length in LENGTHS:
                try:
                    found = {n: _median(n, dtype, channels, length, device, timer) for n in names}
                except torch.OutOfMemoryError:
                    continue
                kind = str(dtype).removeprefix("torch.")
                entries.append(Entry(architecture, kind, channels, length, found))
    return entries


def milliseconds(call: Callable[[], object]) -> float:
    """Of a call on the GPU."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    # Python queues the call meanwhile, and its own time is not in.
    torch.cuda._sleep(_BUSY)  # type: ignore[no-untyped-call]
    start.record()
    call()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end))


def update(path: Path, entries: Sequence[Entry]) -> None:
    """Replace the table's entries of the same architectures, whole or not at all."""
    kept = json.loads(fs.read_text(path))["entries"] if fs.exists(path) else []
    measured = {entry.architecture for entry in entries}
    rows = [row for row in kept if row["architecture"] not in measured]
    rows += [asdict(entry) for entry in entries]
    try:
        fs.write_atomic(path, json.dumps({"entries": rows}, indent=1) + "\n")
    except OSError as error:
        raise SaveError(f"{path}: cannot write ({error.strerror or error})") from None


def _median(
    name: str, dtype: torch.dtype, channels: int, length: int, device: str, timer: Timer
) -> float:
    args = _draw(channels, length, dtype, device)
    u, dt, A, B, C, D, z, bias = args
    grad = torch.ones_like(u)

    def once() -> None:
        y = selective_scan(u, dt, A, B, C, D, z, bias, backend=name)
        torch.autograd.grad(y, args, grad)

    for _ in range(3):
        once()
    return round(statistics.median(timer(once) for _ in range(ROUNDS)), 4)


def _draw(channels: int, length: int, dtype: torch.dtype, device: str) -> list[Tensor]:
    """u, dt, A, B, C, D, z, dt_bias of two groups, 16 states."""
    width = min(1024, channels // 2)
    tokens = (channels // (2 * width), length, 2, width)
    A = -torch.arange(1.0, 17.0, device=device).repeat(2, width, 1)
    u, dt, z = (torch.randn(tokens, device=device, dtype=dtype) for _ in range(3))
    B, C = (torch.randn(*tokens[:3], 16, device=device, dtype=dtype) for _ in range(2))
    D, bias = torch.ones(2, width, device=device), torch.full((2, width), -4.0, device=device)
    return [t.requires_grad_() for t in (u, dt, A, B, C, D, z, bias)]
