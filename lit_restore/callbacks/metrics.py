"""Means of what the training steps return, recorded every so many images, with the throughput."""

from __future__ import annotations

import logging
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor

from lit_restore.callbacks.flops import flops_per_image
from lit_restore.callbacks.horizon import StepCallback
from lit_restore.callbacks.records import Records
from lit_restore.callbacks.throughput import OwnTime, Stopwatch, memory_gb, mfu, skew
from lit_restore.errors import require_at_least
from lit_restore.parallel.peaks import device_peak
from lit_restore.training.base import TrainingModule

_log = logging.getLogger(__name__)

_MUCH_SKEW = 3


class Metrics(StepCallback):
    """Record loss, the module's own scalars, learning rate, gradient norm, speed and memory.

    The means are over all samples since the last record. Sums are kept on the device until then,
    and are part of the checkpoint, so that a resumed run records the same means. What is measured
    adds no wait for the device and no talk between ranks to a step, only to a record.

    Args:
        every: images between records, rounded up to whole steps.
    """

    def __init__(self, every: int = 1024) -> None:
        require_at_least(1, metrics__every=every)
        self.every = every
        self.records: Records | None = None
        self.latest: dict[str, float] = {}
        """The last record, for the progress bar."""
        self._sums: dict[str, Tensor] = {}
        self._count = 0
        self._skipped = 0
        self.flops: float | None = None
        """FLOPs of one image, forward and backward, counted on the first rank."""
        self.peak: float | None = None
        """Peak FLOP/s of a device in the run's precision, where it is known."""
        self._clock = Stopwatch()
        self._own: OwnTime | None = None
        self._warned = False

    def setup(self, trainer: Trainer, pl_module: TrainingModule, stage: str) -> None:  # type: ignore[override]
        """Count the network's arithmetic while it is whole, and not compiled yet."""
        if stage == "fit" and trainer.is_global_zero:
            self.flops = flops_per_image(pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: TrainingModule) -> None:  # type: ignore[override]
        """Start the clock after the set-up."""
        self.peak = device_peak(pl_module.device, str(trainer.precision))
        alone = trainer.world_size == 1 or pl_module.device_mesh is not None
        self._own = None if alone else OwnTime(pl_module.device)
        self._clock = Stopwatch()

    def on_train_batch_start(  # type: ignore[override]
        self, trainer: Trainer, pl_module: TrainingModule, batch: Any, batch_idx: int
    ) -> None:
        """The wait for data ends here."""
        waited = self._clock.data_arrived()
        if self._own is not None:
            self._own.began(waited)

    def on_before_backward(  # type: ignore[override]
        self, trainer: Trainer, pl_module: TrainingModule, loss: Tensor
    ) -> None:
        """Have the end of this rank's own work noted."""
        if self._own is not None:
            self._own.watch(loss)

    def on_micro_batch(
        self, trainer: Trainer, module: TrainingModule, outputs: dict[str, Any], batch: Any
    ) -> None:
        """Add a micro-batch's scalars to the sums."""
        size = len(batch["key"])
        for name, value in outputs.items():
            scalar = value.detach().double() * size
            self._sums[name] = self._sums[name] + scalar if name in self._sums else scalar
        self._count += size
        self._clock.step_ended(size * trainer.world_size)

    def idle(self) -> None:
        """All callbacks of a step have acted: the wait for data begins."""
        self._clock.idle()

    def on_step(self, trainer: Trainer, module: TrainingModule, samples_seen: int) -> None:
        """Record where it is due."""
        self._skipped += int(module.step_skipped)
        last = samples_seen == module.data.total_samples
        if last or self.due(self.every, module, samples_seen):
            values = self._means(trainer)
            values["lr"] = float(trainer.optimizers[0].param_groups[0]["lr"])
            values["gradient_norm"] = module.gradient_norm
            values["skipped_steps"] = float(self._skipped)
            values |= self._clock.lap()
            values |= self._machine(trainer, module, values["images_per_second"])
            if self.flops is not None and samples_seen <= self._first(module):
                values["gflops_per_image"] = self.flops / 1e9
            self.latest = values
            self._sums, self._count, self._skipped = {}, 0, 0
            if self.records is not None:
                self.records.write("train", samples_seen, values)

    def _means(self, trainer: Trainer) -> dict[str, float]:
        names = sorted(self._sums)
        sums = torch.stack([self._sums[name] for name in names])
        total = trainer.strategy.reduce(sums, reduce_op="sum") / trainer.world_size
        return dict(zip(names, (total / self._count).tolist(), strict=True))

    def _machine(
        self, trainer: Trainer, module: TrainingModule, images_per_second: float
    ) -> dict[str, float]:
        """MFU where it is known, memory (the most of any rank) and, under DDP, skew."""
        own, memory = float("nan"), memory_gb(module.device)
        ratio = None
        if trainer.world_size > 1:
            own = own if self._own is None else self._own.mean()
            # A gather by the one collective that records use: the others' columns are zero.
            table = torch.zeros(2, trainer.world_size, dtype=torch.float64)
            table[:, trainer.global_rank] = torch.tensor([own, memory], dtype=torch.float64)
            gathered = trainer.strategy.reduce(table.to(module.device), reduce_op="sum")
            times, memories = gathered.tolist()
            memory = max(memories)
            ratio = skew(times)
            if trainer.is_global_zero:
                self._warn(times, ratio)
        share = mfu(images_per_second, self.flops, self.peak, trainer.world_size)
        known = {"mfu": share, "memory_gb": memory, "skew": ratio}
        return {name: value for name, value in known.items() if value is not None}

    def _warn(self, times: list[float], ratio: float | None) -> None:
        if ratio is None or ratio <= _MUCH_SKEW or self._warned:
            return
        self._warned = True
        slowest = times.index(max(times))
        _log.warning(
            "rank %d takes %.1f times as long for its own work as the median rank (%.0f ms a "
            "micro-batch), and all wait for it; see what else runs there, and its data",
            slowest, ratio, 1e3 * times[slowest],
        )  # fmt: skip

    def _first(self, module: TrainingModule) -> int:
        """The position of the run's first record."""
        return module.data.plan().steps_for(self.every) * module.data.global_batch

    def state(self) -> dict[str, Any]:
        """The sums since the last record, on this rank, exactly."""
        sums = {name: float(value).hex() for name, value in self._sums.items()}
        return {"sums": sums, "count": self._count, "skipped": self._skipped}

    def load_state(self, parts: list[dict[str, Any]], rank: int, world: int) -> None:
        """Go on from the saved sums of all ranks.

        With another number of ranks the means of the current interval are those of what follows;
        nothing but one record's averaging window is affected.
        """
        if len(parts) != world:
            return
        part = parts[rank]
        self._count, self._skipped = int(part["count"]), int(part["skipped"])
        self._sums = {
            name: torch.tensor(float.fromhex(value), dtype=torch.float64)
            for name, value in part["sums"].items()
        }


class AfterStep(Callback):
    """The last callback of a step: what comes before it is no wait for data.

    Args:
        metrics: whose clock is told.
    """

    def __init__(self, metrics: Metrics) -> None:
        self.metrics = metrics

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """The next thing is to ask for data."""
        self.metrics.idle()
