"""Saving a run on its schedule, and going on from what was saved, under every strategy."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import yaml
from lightning.pytorch import Trainer
from torch import Tensor

from lit_restore.callbacks.fingerprints import versions
from lit_restore.callbacks.horizon import StepCallback
from lit_restore.callbacks.preemption import stopped_by
from lit_restore.callbacks.resuming import find_source, load_run, set_aside
from lit_restore.callbacks.retention import Retention
from lit_restore.callbacks.run_parts import RunParts
from lit_restore.callbacks.saving import Outcome, Saver
from lit_restore.data.degradations import describe
from lit_restore.errors import LitRestoreError, SaveError, UserError, require_at_least
from lit_restore.io import failpoints, fs, status
from lit_restore.training.base import TrainingModule
from lit_restore.weights.checkpoint import (
    STEP_FOLDER,
    Checkpoint,
    optimizer_tensors,
    part_of,
    samples_of,
    step_folder,
)
from lit_restore.weights.fine_tune import initialise
from lit_restore.weights.transfer import load_exactly

_log = logging.getLogger(__name__)

T = TypeVar("T")

_FAILURES = 3
GROUPS = ("data", "order", "batch", "model", "optimizer")
"""The groups of a run's fingerprint."""


class Checkpoints(StepCallback):
    """Save every so many images, at the end and when a signal asks; resume by itself.

    Args:
        every: images between checkpoints, rounded up to whole steps; 0 for the end only.
        keep_last: newest checkpoints kept.
        keep_best: checkpoints kept by the first validation metric, the highest first.
        keep_every: images between checkpoints kept for ever; 0 for none.
        asynchronous: write while training goes on, from a copy in host memory; the last save and
            the one at a signal are waited for.
        resume: "auto": the newest good checkpoint of the run folder, a fresh start where there is
            none; "true": there must be one; "false": the run folder must be empty; else a path.
            Where SLURM or torchrun started the run again, "auto" as soon as it has saved.
        init_from: a checkpoint, run folder or exported file that the network starts from.
        allow_change: fingerprint groups (data, order, batch, model, optimizer) that may differ
            from the checkpoint's.

    Raises:
        UserError: nothing to resume from where there must be, or it belongs to another run.
        SaveError: three saves in a row failed, or the one at preemption.
        Preempted, Interrupted: a signal asked to stop, and the state is saved.
    """

    def __init__(
        self,
        every: int = 0,
        keep_last: int = 2,
        keep_best: int = 1,
        keep_every: int = 0,
        asynchronous: bool = False,
        resume: str = "auto",
        init_from: str | None = None,
        allow_change: tuple[str, ...] = (),
    ) -> None:
        require_at_least(
            0, checkpoint__every=every, checkpoint__keep_best=keep_best,
            checkpoint__keep_every=keep_every,
        )  # fmt: skip
        unknown = sorted(set(allow_change) - set(GROUPS))
        if unknown:
            raise UserError(
                f"{unknown[0]} is no group; use some of {', '.join(GROUPS)}",
                where="checkpoint.allow_change",
            )
        for option, value in (("resume", resume), ("init_from", init_from)):
            if value is not None and not value.strip():
                raise UserError("is empty", where=option)
        self.every = every
        self.retention = Retention(last=keep_last, best=keep_best, every=keep_every)
        self.asynchronous = asynchronous
        self.resume, self.init_from = resume, init_from
        self.allow_change = allow_change
        self.parts: RunParts | None = None
        self._saver: Saver | None = None
        self._failures = 0

    @property
    def folder(self) -> Path:
        """Where this run's checkpoints lie."""
        return self._parts.run_dir / "checkpoints"

    # --- starting -------------------------------------------------------------------------------

    def on_fit_start(self, trainer: Trainer, pl_module: TrainingModule) -> None:  # type: ignore[override]
        """Find what to go on from, and load it into what is set up by now."""
        source = on_first(trainer, lambda: find_source(self.folder, self._resume()))
        if source is not None:
            load_run(
                trainer,
                pl_module,
                source,
                self._parts,
                fingerprint=fingerprint(pl_module),
                names=_names(pl_module),
                allow_change=self.allow_change,
            )
            position = pl_module.data.start_position
            on_first(trainer, lambda: set_aside(self.folder, position))
        else:
            self._start_afresh(trainer, pl_module)
        on_first(trainer, self._write_config)
        for records in self._parts.records:
            records.start()
        self._saver = Saver(self.folder, self.retention, self._published)

    def _resume(self) -> str:
        """What is asked for; once a launcher started it again, what the run itself has saved."""
        names = ("SLURM_RESTART_COUNT", "TORCHELASTIC_RESTART_COUNT")
        again = any(os.environ.get(name, "0") not in ("", "0") for name in names)
        saved = fs.list_dir(self.folder) if again and fs.is_dir(self.folder) else []
        return "auto" if any(STEP_FOLDER.fullmatch(path.name) for path in saved) else self.resume

    def _start_afresh(self, trainer: Trainer, module: TrainingModule) -> None:
        for records in self._parts.records:  # of a run that was killed before its first save
            records.cut_back(0)
        if self.init_from is None:
            return
        source = Path(self.init_from)
        report = initialise(module.net, source)
        for twin in module.averages.values():
            load_exactly(twin, module.net.state_dict(), where=source)
        if trainer.is_global_zero:
            _log.warning("%s", report)

    def _write_config(self) -> None:
        text = yaml.safe_dump(self._parts.config, sort_keys=False, allow_unicode=True)
        fs.write_atomic(self._parts.run_dir / "config.yaml", text)

    def on_train_start(self, trainer: Trainer, pl_module: TrainingModule) -> None:  # type: ignore[override]
        """Stop here where a signal came during the set-up; keep what validation was made up for."""
        seen = pl_module.samples_seen
        number = self._parts.stop.signal()
        if number:
            raise stopped_by(number, seen)
        if trainer.is_global_zero:
            self._tell(seen, None)
        if seen and self._parts.validation.scores:
            self._save(trainer, pl_module, seen, final=False)

    def close(self) -> None:
        """The run ends, well or not."""
        if self._saver is not None:
            self._saver.close()

    # --- saving ---------------------------------------------------------------------------------

    def on_step(self, trainer: Trainer, module: TrainingModule, samples_seen: int) -> None:
        """Save where it is due, or where a signal asks for it, and then stop."""
        failpoints.hit("train.step")
        number = self._parts.stop.signal()
        last = samples_seen == module.data.total_samples
        if number and not (last and not self._parts.validation.pending):
            self._save(trainer, module, samples_seen, final=True)
            raise stopped_by(number, samples_seen)
        if last or self.due(self.every, module, samples_seen):
            self._save(trainer, module, samples_seen, final=last)

    def _save(
        self, trainer: Trainer, module: TrainingModule, samples_seen: int, *, final: bool
    ) -> None:
        """Save; all ranks learn how it went. `final`: there is no later save to hope for.

        Raises:
            SaveError: `final`, or the third failure in a row.
        """
        assert self._saver is not None
        before = self._saver.settle()
        if before is not None:
            self._judge(trainer, before, final=False)
        metrics = self._saver.control.gather(self._parts.metrics.state())
        checkpoint = self._content(trainer, module, samples_seen, metrics)
        target = step_folder(self.folder, samples_seen)
        part = part_of(checkpoint, rank=trainer.global_rank)
        if self.asynchronous and not final:
            self._saver.save_behind(target, part, checkpoint.state)
        else:
            outcome = self._saver.save(target, part, checkpoint.state, verify=final)
            self._judge(trainer, outcome, final=final)

    def _judge(self, trainer: Trainer, outcome: Outcome, *, final: bool) -> None:
        if outcome.error is None:
            self._failures = 0
            return
        self._failures += 1
        if final or self._failures >= _FAILURES:
            raise SaveError(f"{self.folder}: {outcome.error}; free some space or move run_dir")
        if trainer.is_global_zero:
            message = "checkpoint %s failed (%s); training goes on"
            _log.warning(message, outcome.target.name, outcome.error)

    def _content(
        self,
        trainer: Trainer,
        module: TrainingModule,
        samples_seen: int,
        metrics: list[dict[str, Any]],
    ) -> Checkpoint:
        parts = self._parts
        scores = parts.validation.scores
        return Checkpoint(
            network=module.net.state_dict(),
            averages={name: twin.state_dict() for name, twin in parts.ema.twins.items()},
            optimizer=optimizer_tensors(trainer.optimizers[0], _names(module)),
            state={
                "task": module.task,
                "samples_seen": samples_seen,
                "network": {"name": module.net.kind, "options": module.net.options},
                "profiles": list(parts.ema.twins),
                "config": parts.config,
                "versions": versions(),
                "fingerprint": fingerprint(module),
                "frozen": dict(module.frozen),
                "degradation": degradation_of(module),
                "metrics": metrics,
                "validation_pending": parts.validation.pending,
                "nonfinite_in_a_row": parts.guard.in_a_row,
                "scaler": trainer.precision_plugin.state_dict(),
                "scores": dict(scores),
                "score": next(iter(scores.values()), None),
            },
        )

    def _published(self, target: Path) -> None:
        self._tell(samples_of(target), target)

    def _tell(self, samples_seen: int, target: Path | None) -> None:
        status.write_status(
            self._parts.run_dir,
            state="running",
            code=None,
            samples_seen=samples_seen,
            checkpoint=None if target is None else target.name,
            message="",
        )

    @property
    def _parts(self) -> RunParts:
        assert self.parts is not None
        return self.parts


def fingerprint(module: TrainingModule) -> dict[str, Any]:
    """What must be the same in all parts of a run."""
    shapes = {name: [list(t.shape), str(t.dtype)] for name, t in module.net.state_dict().items()}
    model: dict[str, Any] = {"network": module.net.kind, "tensors": shapes}
    if module.frozen:
        model["frozen"] = dict(module.frozen)
    return {
        **module.data.fingerprint(),
        "model": model,
        "optimizer": {"name": module.optimizer_options.name},
    }


def degradation_of(module: TrainingModule) -> dict[str, Any] | None:
    """How the training's pictures are degraded: what a use of the network is compared with."""
    if module.restored_from is not None:
        return dict(module.restored_from)
    given = module.data.degradation
    return None if given is None else describe(given)


def _names(module: TrainingModule) -> dict[Tensor, str]:
    return {p: name for name, p in module.named_parameters() if p.requires_grad}


def on_first(trainer: Trainer, action: Callable[[], T]) -> T | None:
    """Do something on rank 0; all ranks have its result, or raise what it raised.

    Raises:
        LitRestoreError: ours as it was raised, or a SaveError for what the disk refused.
    """
    result: Any = None
    if trainer.is_global_zero:
        try:
            result = action()
        except LitRestoreError as error:
            result = error
        except OSError as error:
            where = f"{error.filename}: {error.strerror}"
            result = SaveError(f"{where}; mend the disk or choose another run_dir")
    result = trainer.strategy.broadcast(result)
    if isinstance(result, LitRestoreError):
        raise result
    return cast("T | None", result)
