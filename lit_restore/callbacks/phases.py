"""Where the time of a training step goes, from the names Lightning gives to what it does."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch.profilers import Profiler

from lit_restore.callbacks.throughput import marker, seconds_between

DATA, TRANSFER, FORWARD, BACKWARD = "data wait", "to the device", "forward", "backward"
COMMUNICATION, OPTIMISER, EMA, CALLBACKS = "communication", "optimiser", "EMA", "callbacks"
LOOP = "loop"
PHASES = (
    DATA, TRANSFER, FORWARD, BACKWARD, COMMUNICATION, OPTIMISER, EMA, CALLBACKS, LOOP,
)  # fmt: skip
"""All phases of a step, in their order; "loop" is what lies between the others."""


def phase_of(action: str) -> str | None:
    """The phase that begins with one of Lightning's actions; None where the phase stays.

    Clipping and the optimiser's step are what is left of `optimizer_step` without the forward and
    the backward pass inside it.
    """
    owner, _, hook = action.rpartition(".")
    if hook == "train_dataloader_next":
        return DATA
    if owner.startswith("[Strategy]"):
        known = {"batch_to_device": TRANSFER, "training_step": FORWARD, "backward": BACKWARD}
        return known.get(hook)
    if hook == "optimizer_step":
        return OPTIMISER
    if owner.startswith("[Callback]") and hook in ("on_train_batch_start", "on_train_batch_end"):
        name = owner.removeprefix("[Callback]").partition("{")[0]
        return EMA if name == "EMA" else CALLBACKS
    return None


class Phases(Profiler):
    """Times the phases of each step, each without those inside it; marks them in a trace.

    On CUDA the borders are events on the stream, read when the times are asked for: a phase's time
    is the device's, and no step waits.

    Args:
        device: where the network is.
        clock: seconds from any origin, used on CPUs.
    """

    def __init__(
        self, device: torch.device, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        super().__init__()
        self._mark = marker(device, clock)
        self._borders: list[tuple[str, Any]] = []
        self._open: list[tuple[str, str]] = []
        self._range: torch.autograd.profiler.record_function | None = None
        self.timing = False
        """Whether borders are kept."""
        self.marking = False
        """Whether phases are marked in the trace that is being made."""

    def start(self, action_name: str) -> None:
        """Lightning begins something."""
        phase = phase_of(action_name)
        if phase is not None:
            self._open.append((action_name, phase))
            self._border()

    def stop(self, action_name: str) -> None:
        """It is done; what was interrupted goes on."""
        if any(action == action_name for action, _ in self._open):
            while self._open.pop()[0] != action_name:
                pass
            self._border()

    def begin(self, phase: str) -> None:
        """A phase begins in the middle of an action, and ends with it.

        It may be called by a thread of the autograd engine, so the trace is not marked.
        """
        self._open.append(("", phase))
        if self.timing:
            self._borders.append((phase, self._mark()))

    def step(self) -> None:
        """A step ends here."""
        self._border()

    def _border(self) -> None:
        phase = self._open[-1][1] if self._open else LOOP
        if self.timing:
            self._borders.append((phase, self._mark()))
        if self._range is not None:
            self._range.__exit__(None, None, None)
            self._range = None
        if self.marking:
            self._range = torch.autograd.profiler.record_function(phase)
            self._range.__enter__()  # type: ignore[no-untyped-call]

    def seconds(self) -> dict[str, float]:
        """Seconds of each phase between the first and the last border; then all are forgotten."""
        total: dict[str, float] = defaultdict(float)
        for (phase, start), (_, end) in zip(self._borders, self._borders[1:], strict=False):
            total[phase] += seconds_between(start, end)
        self._borders = []
        return {phase: total[phase] for phase in PHASES if phase in total}
