"""A few steps under a clock, then under PyTorch's profiler: a trace and a page that reads it."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.profilers import PassThroughProfiler
from torch import Tensor
from torch.autograd import DeviceType  # type: ignore[attr-defined]
from torch.profiler import ProfilerActivity, profile, schedule

from lit_restore.callbacks.bottleneck import Operation, StepProfile, bottleneck, page
from lit_restore.callbacks.horizon import StepCallback
from lit_restore.callbacks.metrics import Metrics
from lit_restore.callbacks.phases import COMMUNICATION, PHASES, Phases
from lit_restore.callbacks.throughput import after_own_backward, memory_gb, mfu
from lit_restore.errors import UserError, require_at_least
from lit_restore.io import fs
from lit_restore.io.by_path import write_by_path
from lit_restore.training.base import TrainingModule

_log = logging.getLogger(__name__)

_WARM_UP = 10
_SHARDED = " Under FSDP2 waits for other ranks are part of forward and backward."


class Profile(StepCallback):
    """Profile a few steps of the first rank: `profile/trace.json` and `profile/summary.md`.

    Ten steps (fewer in a short run) to warm up; `steps` timed phase by phase, with no profiler to
    slow them down; one for the profiler to start; `steps` traced. The last callback of a step.

    Args:
        enabled: whether to.
        steps: steps that are timed, and again that are traced.

    Raises:
        UserError: the run is too short, or has another profiler.
    """

    def __init__(self, enabled: bool = False, steps: int = 5) -> None:
        require_at_least(1, profile__steps=steps)
        self.enabled, self.steps = enabled, steps
        self.metrics: Metrics | None = None
        self.run_dir = Path()
        self.compiled = False
        """Whether the network's blocks are compiled."""
        self._phases: Phases | None = None
        self._timed: dict[str, float] = {}
        self._memory = 0.0
        self._trace: profile | None = None
        self._count = 0
        self._warm_up = _WARM_UP
        self._sentence = ""

    def setup(self, trainer: Trainer, pl_module: TrainingModule, stage: str) -> None:  # type: ignore[override]
        """Refuse a profiler beside ours."""
        set_by_hand = not isinstance(trainer.profiler, PassThroughProfiler)  # type: ignore[attr-defined]
        if self.enabled and set_by_hand:
            raise UserError("is set beside trainer.profiler; choose one", where="profile.enabled")

    def on_train_start(self, trainer: Trainer, pl_module: TrainingModule) -> None:  # type: ignore[override]
        """Plan the steps; begin to listen to what Lightning does."""
        if not self.enabled:
            return
        left = pl_module.data.total_samples - pl_module.samples_seen
        if not left:
            return
        batch = pl_module.data.global_batch
        needed = 2 * self.steps + 2
        if left < needed * batch:
            raise UserError(
                f"{self.steps} need {needed} steps of {batch} images, and {left // batch} are "
                f"left; set total_samples to {pl_module.samples_seen + needed * batch} or more",
                where="profile.steps",
            )
        self._warm_up = min(_WARM_UP, left // batch - needed + 1)
        self._count = 0
        if trainer.is_global_zero:
            self._phases = Phases(pl_module.device)
            trainer.profiler = self._phases  # type: ignore[attr-defined]

    def on_before_backward(  # type: ignore[override]
        self, trainer: Trainer, pl_module: TrainingModule, loss: Tensor
    ) -> None:
        """With several ranks, have the wait for the others timed apart."""
        phases = self._phases
        if phases is not None and phases.timing and trainer.world_size > 1:
            after_own_backward(loss, lambda: phases.begin(COMMUNICATION))

    def on_step(self, trainer: Trainer, module: TrainingModule, samples_seen: int) -> None:
        """Go from one stage to the next at the end of a step."""
        phases = self._phases
        if phases is None:
            return
        self._count += 1
        timed = self._warm_up + self.steps
        if self._count == self._warm_up:
            phases.timing = True
            phases.step()
        elif self._count == timed:
            phases.step()
            phases.timing = False
            self._timed = {name: s / self.steps for name, s in phases.seconds().items()}
            self._memory = memory_gb(module.device)
            self._trace = self._profiler(module.device)
            self._trace.start()
        elif self._trace is not None:
            phases.marking = self._count < timed + 1 + self.steps
            phases.step()
            self._trace.step()
            if not phases.marking:
                self._finish(trainer, module)

    def on_fit_end(self, trainer: Trainer, pl_module: TrainingModule) -> None:  # type: ignore[override]
        """Say last where the summary is."""
        if self._sentence:
            print(f"{self._folder / 'summary.md'}: {self._sentence}", file=sys.stderr, flush=True)

    @property
    def _folder(self) -> Path:
        return self.run_dir / "profile"

    def _profiler(self, device: torch.device) -> profile:
        os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # it tells of devices that are not there
        activities = [ProfilerActivity.CPU]
        if device.type == "cuda":
            activities.append(ProfilerActivity.CUDA)
        plan = schedule(wait=0, warmup=1, active=self.steps, repeat=1)
        return profile(activities=activities, schedule=plan)

    def _finish(self, trainer: Trainer, module: TrainingModule) -> None:
        trace, self._trace, self._phases = self._trace, None, None
        trainer.profiler = PassThroughProfiler()  # type: ignore[attr-defined]
        assert trace is not None
        found = self._found(trainer, module, trace)
        try:
            fs.make_dir(self._folder)
            target = self._folder / "trace.json"
            write_by_path(target, trace.export_chrome_trace, drafts=self.run_dir)
            fs.write_atomic(self._folder / "summary.md", page(found))
            self._sentence = bottleneck(found)
        except (OSError, RuntimeError) as error:  # a full disk ends no training
            _log.warning("%s could not be written: %s", self._folder, error)

    def _found(self, trainer: Trainer, module: TrainingModule, trace: profile) -> StepProfile:
        metrics, plan = self.metrics or Metrics(), module.data.plan()
        seconds = max(sum(self._timed.values()), 1e-12)
        rate = plan.global_batch / seconds
        cuda = module.device.type == "cuda"
        name = torch.cuda.get_device_name(module.device) if cuda else "CPU"
        return StepProfile(
            phases=self._timed,
            operations=operations(trace.key_averages(), self.steps, cuda=cuda),
            images=plan.global_batch,
            setting=f"{module.net.kind} on {plan.world} x {name}, precision "
            f"{trainer.precision}{', compiled' if self.compiled else ''}; {self.steps} steps of "
            f"{plan.global_batch} images ({plan.world} rank x {plan.accumulation} x {plan.micro}), "
            f"after {self._warm_up} to warm up."
            f"{'' if module.device_mesh is None else _SHARDED}",
            precision=str(trainer.precision),
            compiled=self.compiled,
            cuda=cuda,
            # A record within the timed steps begins a new peak.
            memory_gb=max(self._memory, metrics.latest.get("memory_gb", 0.0)),
            flops=metrics.flops,
            mfu=mfu(rate, metrics.flops, metrics.peak, trainer.world_size),
        )


def operations(averages: Any, steps: int, *, cuda: bool) -> tuple[Operation, ...]:
    """The operations of a trace by their own time, the longest first.

    Args:
        averages: what `torch.profiler.profile.key_averages` returns.
        steps: traced steps, by which all is divided.
        cuda: count what the kernels take that an operation launches, not what it takes the CPU.
    """
    found = []
    for entry in averages:
        if entry.is_user_annotation or entry.key in PHASES or entry.key.startswith("nccl"):
            continue
        if entry.device_type != DeviceType.CPU:
            continue
        micros = entry.self_device_time_total if cuda else entry.self_cpu_time_total
        if micros > 0:
            found.append(
                Operation(name=entry.key, seconds=micros / 1e6 / steps, calls=entry.count / steps)
            )
    return tuple(sorted(found, key=lambda operation: -operation.seconds))
