"""What a profile says: the one sentence that names the bottleneck, and the page around it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lit_restore.callbacks.phases import (
    BACKWARD,
    CALLBACKS,
    COMMUNICATION,
    DATA,
    EMA,
    FORWARD,
    LOOP,
    OPTIMISER,
    TRANSFER,
)

_MUCH = 0.2
"""The share of a step from which on something beside the network is the bottleneck."""
_IDLE = 0.4
"""The share of a step that a GPU may do nothing; beyond, it waits for launches."""
_TINY = 10e-6
"""Seconds of a CPU operation below which most of it is the way there."""

_BESIDE: tuple[tuple[str, tuple[str, ...], str], ...] = (
    ("data", (DATA,), "waits for data; raise data.workers or data.cache"),
    (
        "communication",
        (COMMUNICATION,),
        "waits for other ranks; raise data.global_batch, and see skew in metrics.jsonl for a rank "
        "that lags",
    ),
    (
        "optimiser and EMA",
        (OPTIMISER, EMA),
        "is the optimiser's and the averages'; raise data.global_batch or keep fewer ema.profiles",
    ),
    (
        "transfer",
        (TRANSFER,),
        "moves batches to the device and degrades them; see data.degradation",
    ),
    (
        "callbacks",
        (CALLBACKS, LOOP),
        "is spent between the steps; raise validation.every, samples.every, checkpoint.every and "
        "metrics.every",
    ),
)
"""Name, phases, and what is said of their share."""


@dataclass(frozen=True, kw_only=True)
class Operation:
    """One operation of the trace, on the device it runs on, without what it calls."""

    name: str
    seconds: float
    """A step."""
    calls: float
    """A step."""


@dataclass(frozen=True, kw_only=True)
class StepProfile:
    """What was measured of a few steps."""

    phases: Mapping[str, float]
    """Phase → seconds a step, measured before the trace was begun."""
    operations: tuple[Operation, ...]
    """All of the trace, the longest first."""
    images: int
    """A step, over all ranks."""
    setting: str
    """The network and how it was run, in words."""
    precision: str
    compiled: bool
    cuda: bool
    memory_gb: float
    flops: float | None
    """Of an image."""
    mfu: float | None
    """The share of the devices' peak."""

    @property
    def seconds(self) -> float:
        """Of a step."""
        return sum(self.phases.values())

    def share(self, *phases: str) -> float:
        """The share of a step that `phases` take."""
        return sum(self.phases.get(phase, 0.0) for phase in phases) / max(self.seconds, 1e-12)

    @property
    def busy(self) -> float | None:
        """The share of a step that the GPU computes; None on the CPU."""
        if not self.cuda:
            return None
        return min(1.0, sum(o.seconds for o in self.operations) / max(self.seconds, 1e-12))

    @property
    def mean_operation(self) -> float | None:
        """Seconds of an operation on average; None where there was none."""
        calls = sum(o.calls for o in self.operations)
        return sum(o.seconds for o in self.operations) / calls if calls else None


def bottleneck(profile: StepProfile) -> str:
    """One sentence: what takes the time, and what to do about it.

    What lies beside the network comes first, the largest of it that takes a fifth of a step: it is
    time that nothing is learnt in. Else the device either waits for launches (a GPU that is idle
    for more than 40 %, operations on the CPU below 10 µs) or computes.
    """
    shares = [(profile.share(*phases), name, text) for name, phases, text in _BESIDE]
    share, name, text = max(shares)
    if share >= _MUCH:
        return f"{name}: {100 * share:.0f} % of the time {text}"
    larger = "a larger data.global_batch (data.micro_batch, where it is set)"
    mend = larger if profile.compiled else f"compile: true, or {larger}"
    if profile.busy is not None and profile.busy < 1 - _IDLE:
        idle = 100 * (1 - profile.busy)
        return f"launch-bound: the GPU is idle {idle:.0f} % of the time, many small kernels; {mend}"
    mean = profile.mean_operation
    if not profile.cuda and mean is not None and mean < _TINY:
        return f"launch-bound: many small operations, {1e6 * mean:.0f} µs on average; {mend}"
    used = "" if profile.mfu is None else f" at {100 * profile.mfu:.0f} % of the peak"
    share = 100 * profile.share(FORWARD, BACKWARD)
    return f"compute-bound: {share:.0f} % is forward and backward{used}; {_faster(profile)}"


def _faster(profile: StepProfile) -> str:
    mends = []
    if profile.cuda and profile.precision.startswith("32"):
        mends.append("trainer.precision: bf16-mixed")
    if not profile.compiled:
        mends.append("compile: true")
    return " and ".join(mends) if mends else "more devices, or a smaller network"


def page(profile: StepProfile) -> str:
    """The summary as Markdown, one page."""
    rate = profile.images / max(profile.seconds, 1e-12)
    facts = [
        ("images per second", f"{rate:.4g}"),
        ("a step", f"{1e3 * profile.seconds:.4g} ms"),
        ("data wait", f"{100 * profile.share(DATA):.0f} %"),
        ("memory", f"{profile.memory_gb:.3g} GB"),
    ]
    if profile.flops is not None:
        facts.append(("GFLOPs an image", f"{profile.flops / 1e9:.4g}"))
        facts.append(("GFLOP/s", f"{profile.flops * rate / 1e9:.4g}"))
    known = "not known for this device" if profile.mfu is None else f"{100 * profile.mfu:.1f} %"
    facts.append(("MFU", known))
    if profile.busy is not None:
        facts.append(("GPU busy", f"{100 * profile.busy:.0f} %"))
    phases = [
        (name, f"{1e3 * seconds:.3g}", f"{100 * profile.share(name):.1f} %")
        for name, seconds in profile.phases.items()
    ]
    traced = max(sum(o.seconds for o in profile.operations), 1e-12)
    operations = [
        (o.name, f"{1e3 * o.seconds:.3g}", f"{100 * o.seconds / traced:.1f} %", f"{o.calls:.4g}")
        for o in profile.operations[:10]
    ]
    return "\n".join(
        [
            "# Where the time of a training step goes",
            "",
            f"**{bottleneck(profile)}**",
            "",
            profile.setting,
            "",
            *_table(("", ""), facts),
            "",
            "## Phases",
            "",
            *_table(("phase", "ms a step", "share"), phases),
            "",
            "## The ten longest operations",
            "",
            *_table(("operation", "ms a step", "share of all", "calls a step"), operations),
            "",
            "Phases are timed before the trace is begun; operations in it, which takes a little "
            "longer.",
            "The trace is `trace.json`: open it in ui.perfetto.dev or chrome://tracing.",
            "",
        ]
    )


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> list[str]:
    rule = "|---|" + "---:|" * (len(head) - 1)
    cells = [[cell.replace("|", "\\|") for cell in row] for row in (head, *rows)]
    lines = [f"| {' | '.join(row)} |" for row in cells]
    return [lines[0], rule, *lines[1:]]
