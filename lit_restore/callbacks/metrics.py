"""Means of what the training steps return, recorded every so many images, with the throughput."""

from __future__ import annotations

import time
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from lit_restore.callbacks.horizon import StepCallback
from lit_restore.callbacks.records import Records
from lit_restore.errors import require_at_least
from lit_restore.training.base import TrainingModule


class Metrics(StepCallback):
    """Record loss, the module's own scalars, learning rate, gradient norm and speed.

    The means are over all samples since the last record. Sums are kept on the device until then,
    and are part of the checkpoint, so that a resumed run records the same means.

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
        self._clock = Stopwatch()

    def on_train_start(self, trainer: Trainer, pl_module: TrainingModule) -> None:  # type: ignore[override]
        """Start the clock after the set-up."""
        self._clock = Stopwatch()

    def on_train_batch_start(  # type: ignore[override]
        self, trainer: Trainer, pl_module: TrainingModule, batch: Any, batch_idx: int
    ) -> None:
        """The wait for data ends here."""
        self._clock.data_arrived()

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
            self.latest = values
            self._sums, self._count, self._skipped = {}, 0, 0
            if self.records is not None:
                self.records.write("train", samples_seen, values)

    def _means(self, trainer: Trainer) -> dict[str, float]:
        names = sorted(self._sums)
        sums = torch.stack([self._sums[name] for name in names])
        total = trainer.strategy.reduce(sums, reduce_op="sum") / trainer.world_size
        return dict(zip(names, (total / self._count).tolist(), strict=True))

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


class Stopwatch:
    """Time between records, and the share of it spent waiting for data."""

    def __init__(self) -> None:
        self._started = self._idle_since = time.monotonic()
        self._waited = 0.0
        self._images = 0

    def data_arrived(self) -> None:
        """A batch is here."""
        self._waited += time.monotonic() - self._idle_since

    def step_ended(self, images: int) -> None:
        """`images` are done; the next thing is to ask for data."""
        self._images += images
        self._idle_since = time.monotonic()

    def lap(self) -> dict[str, float]:
        """Seconds, images per second and data-wait share since the last lap."""
        now = time.monotonic()
        seconds = max(now - self._started, 1e-9)
        values = {
            "seconds": seconds,
            "images_per_second": self._images / seconds,
            "data_wait": min(1.0, self._waited / seconds),
        }
        self._started, self._waited, self._images = now, 0.0, 0
        return values
