"""Validation scheduled in images, always once at the end, and never lost to a preemption."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.utilities.types import STEP_OUTPUT

from lit_restore.callbacks.horizon import StepCallback
from lit_restore.callbacks.preemption import StopRequest
from lit_restore.callbacks.records import Records
from lit_restore.errors import require_at_least
from lit_restore.io import failpoints
from lit_restore.training.base import TrainingModule


class _StopValidation(Exception):
    """Leaves the evaluation loop between two batches."""


class Validation(StepCallback):
    """Run the validation loop every `every` images and after the last step.

    Args:
        every: images between validations, rounded up to whole steps; 0 for the end only.
    """

    def __init__(self, every: int = 0) -> None:
        require_at_least(0, validation__every=every)
        self.every = every
        self.records: Records | None = None
        self.stop: StopRequest | None = None
        self.pending = False
        """Due at this position, but not finished: a resumed run does it first."""
        self.scores: dict[str, float] = {}
        """The means of the last validation at this position; empty at other positions."""

    def on_train_start(self, trainer: Trainer, pl_module: TrainingModule) -> None:  # type: ignore[override]
        """Do what a stopped run left undone."""
        if self.pending:
            self.run(trainer, pl_module, pl_module.samples_seen)

    def on_step(self, trainer: Trainer, module: TrainingModule, samples_seen: int) -> None:
        """Validate where it is due."""
        self.scores = {}
        last = samples_seen == module.data.total_samples
        if "val" in module.data.sources and (last or self.due(self.every, module, samples_seen)):
            self.run(trainer, module, samples_seen)

    def on_validation_batch_end(  # type: ignore[override]
        self,
        trainer: Trainer,
        pl_module: TrainingModule,
        outputs: STEP_OUTPUT,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Leave at once where a signal asked for it."""
        failpoints.hit("val.batch")
        if self.stop is not None and trainer.state.fn == "fit" and self.stop.signal():
            raise _StopValidation

    def run(self, trainer: Trainer, module: TrainingModule, samples_seen: int) -> None:
        """The validation loop inside a fit; what Lightning does in `on_advance_end`."""
        connector = trainer._logger_connector
        first = connector._first_loop_iter
        self.pending = True
        trainer.validating = True
        loop = trainer.fit_loop.epoch_loop.val_loop
        loop.restarting = False
        try:
            loop.run()
            self.pending = False
        except _StopValidation:
            return
        finally:
            trainer.training = True
            module.train()
            connector._first_loop_iter = first
        self.scores = module.validation_means()
        if self.records is not None:
            self.records.write("val", samples_seen, self.scores)
