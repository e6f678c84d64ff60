"""The length of the run and its schedules, in images, handed to Lightning's loops."""

from __future__ import annotations

from typing import Any, cast

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loops.progress import _ProcessedTracker
from lightning.pytorch.utilities.types import STEP_OUTPUT

from lit_restore.callbacks.preemption import StopRequest
from lit_restore.errors import UserError
from lit_restore.training.base import TrainingModule


class Horizon(Callback):
    """One Lightning epoch is the whole run; accumulation follows from the batch sizes."""

    def __init__(self, stop: StopRequest) -> None:
        self.stop = stop

    def setup(self, trainer: Trainer, pl_module: TrainingModule, stage: str) -> None:  # type: ignore[override]
        """Set the accumulation for this number of ranks; refuse a crop the network cannot take."""
        self.stop.take_signals(trainer)
        if stage == "fit":
            check_crop(pl_module)
            trainer.accumulate_grad_batches = pl_module.data.plan().accumulation

    def on_train_start(self, trainer: Trainer, pl_module: TrainingModule) -> None:  # type: ignore[override]
        """Make what the ranks agree by."""
        self.stop.start(trainer)


def check_crop(module: TrainingModule) -> None:
    """Refuse a training crop that is no multiple of what the network needs.

    Raises:
        UserError: names data.crop and the nearest valid values.
    """
    crop, multiple = module.data.augmentation.crop, module.net.multiple
    if crop is not None and crop % multiple:
        below = crop // multiple * multiple
        valid = " or ".join(str(size) for size in (below, below + multiple) if size)
        raise UserError(
            f"{crop} is not a multiple of {multiple}, which {module.net.kind} needs; use {valid}",
            where="data.crop",
        )


def set_position(trainer: Trainer, module: TrainingModule, samples_seen: int) -> None:
    """Make the loops stand after `samples_seen` samples, as if they had run there.

    Lightning's own counters are not restored: they count batches, and a batch may have another
    size in this part of the run. To be called in `on_fit_start`.
    """
    plan = module.data.plan()
    step, batch = samples_seen // plan.global_batch, samples_seen // (plan.world * plan.micro)
    loop = trainer.fit_loop.epoch_loop
    for progress in (loop.batch_progress.total, loop.batch_progress.current):
        assert isinstance(progress, _ProcessedTracker)
        progress.ready = progress.started = progress.processed = progress.completed = batch
    optimizer = loop.automatic_optimization.optim_progress.optimizer.step
    for count in (optimizer.total, optimizer.current):
        count.ready = count.completed = step
    loop._batches_that_stepped = step
    loop.restarting = True  # keeps the loop from starting its counts at zero
    module.data.start_position = samples_seen


class StepCallback(Callback):
    """A callback that acts once per optimiser step."""

    def on_train_batch_end(  # type: ignore[override]
        self,
        trainer: Trainer,
        pl_module: TrainingModule,
        outputs: STEP_OUTPUT,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Call `on_micro_batch`, and `on_step` where a step ended."""
        values = dict(cast(dict[str, Any], outputs))
        values["loss"] = values["loss"] * trainer.accumulate_grad_batches  # undo Lightning's share
        self.on_micro_batch(trainer, pl_module, values, batch)
        if pl_module.step_ended(batch_idx):
            self.on_step(trainer, pl_module, pl_module.samples_seen)

    def on_micro_batch(
        self, trainer: Trainer, module: TrainingModule, outputs: dict[str, Any], batch: Any
    ) -> None:
        """After every micro-batch."""

    def on_step(self, trainer: Trainer, module: TrainingModule, samples_seen: int) -> None:
        """After every optimiser step; `samples_seen` includes it."""

    def due(self, every: int, module: TrainingModule, samples_seen: int) -> bool:
        """Whether something done every `every` images (whole steps) falls on this step."""
        batch = module.data.global_batch
        return every > 0 and samples_seen % (module.data.plan().steps_for(every) * batch) == 0
