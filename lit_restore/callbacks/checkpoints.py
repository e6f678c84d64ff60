"""Saving a run, and going on from what was saved, under every strategy."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch import Trainer
from torch import Tensor

from lit_restore.callbacks.ema import EMA
from lit_restore.callbacks.fingerprints import check_fingerprint, versions
from lit_restore.callbacks.horizon import StepCallback, set_position
from lit_restore.callbacks.metrics import Metrics
from lit_restore.callbacks.nonfinite import NonFiniteGuard
from lit_restore.callbacks.preemption import StopRequest, stopped_by
from lit_restore.callbacks.records import Records
from lit_restore.callbacks.retention import Retention
from lit_restore.callbacks.validation import Validation
from lit_restore.errors import LitRestoreError, SaveError, UserError, require_at_least
from lit_restore.io import failpoints, folder, fs, status
from lit_restore.training.base import TrainingModule
from lit_restore.weights.checkpoint import (
    STEP_FOLDER,
    Checkpoint,
    load_optimizer,
    optimizer_tensors,
    read_checkpoint,
    read_state,
    samples_of,
    step_folder,
    write_checkpoint,
)
from lit_restore.weights.fine_tune import initialise
from lit_restore.weights.transfer import load_exactly

_log = logging.getLogger(__name__)

_FAILURES = 3
GROUPS = ("data", "order", "batch", "model", "optimizer")
"""The groups of a run's fingerprint."""


@dataclass
class RunParts:
    """The other callbacks whose state a checkpoint holds, and the run they belong to."""

    run_dir: Path
    config: dict[str, Any]
    """The resolved configuration."""
    metrics: Metrics
    validation: Validation
    guard: NonFiniteGuard
    ema: EMA
    records: tuple[Records, ...]
    """Cut back to the checkpoint when the run is resumed."""
    stop: StopRequest


class Checkpoints(StepCallback):
    """Save every so many images, at the end and when a signal asks; resume by itself.

    Args:
        every: images between checkpoints, rounded up to whole steps; 0 for the end only.
        keep_last: newest checkpoints kept.
        keep_best: checkpoints kept by the first validation metric, the highest first.
        keep_every: images between checkpoints kept for ever; 0 for none.
        resume: "auto": the newest good checkpoint of the run folder, a fresh start where there is
            none; "true": there must be one; "false": the run folder must be empty; else a path.
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
        self.resume, self.init_from = resume, init_from
        self.allow_change = allow_change
        self.parts: RunParts | None = None
        self._failures = 0
        self._saves = 0
        self._last_size = 0

    @property
    def folder(self) -> Path:
        """Where this run's checkpoints lie."""
        assert self.parts is not None
        return self.parts.run_dir / "checkpoints"

    # --- starting -------------------------------------------------------------------------------

    def on_fit_start(self, trainer: Trainer, pl_module: TrainingModule) -> None:  # type: ignore[override]
        """Find what to go on from, and load it into what is set up by now."""
        source = trainer.strategy.broadcast(_outcome(self._find, trainer))
        if isinstance(source, LitRestoreError):
            raise source
        if source is not None:
            self._load(trainer, pl_module, source)
            failure = trainer.strategy.broadcast(
                _outcome(lambda: self._set_aside(pl_module.data.start_position), trainer)
            )
            if failure is not None:
                raise failure
        else:
            self._start_afresh(trainer, pl_module)
        if trainer.is_global_zero:
            self._write_config()
        for records in self._parts.records:
            records.start()

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
        try:
            fs.write_atomic(self._parts.run_dir / "config.yaml", text)
        except OSError as error:
            raise SaveError(f"{self._parts.run_dir}: {error.strerror}; free some space") from None

    def _find(self) -> Path | None:
        fs.make_dir(self.folder)
        for place in (self.folder, self.folder.parent):
            folder.sweep(place)
        if self.resume not in ("auto", "true", "false"):
            path = Path(self.resume)
            folder.verify(path)
            return path
        names = [p for p in fs.list_dir(self.folder) if STEP_FOLDER.fullmatch(p.name)]
        if self.resume == "false":
            if names:
                raise UserError(
                    f"holds checkpoints up to {names[-1].name}; resume: auto goes on from there, "
                    "another run_dir starts afresh",
                    where=self.folder.parent,
                )
            return None
        good = _newest_good(names)
        if good is None and (names or self.resume == "true"):
            what = "no checkpoint is intact" if names else "holds no checkpoint to resume from"
            raise UserError(f"{what}; resume: PATH names another", where=self.folder)
        return good

    def _load(self, trainer: Trainer, module: TrainingModule, source: Path) -> None:
        parts = self._parts
        saved = read_checkpoint(source)
        state = saved.state
        check_fingerprint(state["fingerprint"], fingerprint(module), self.allow_change, source)
        load_exactly(module.net, saved.network, where=source)
        for profile, twin in parts.ema.twins.items():
            stored = saved.averages.get(profile, saved.network)
            if profile not in saved.averages:
                _log.warning("%s has no average %s; it starts from the weights", source, profile)
            load_exactly(twin, stored, where=source)
        load_optimizer(trainer.optimizers[0], _names(module), saved.optimizer, where=source)
        seen = int(state["samples_seen"])
        if seen % module.data.global_batch or seen > module.data.total_samples:
            raise UserError(
                f"stands at {seen} samples: not on a step of data.global_batch "
                f"{module.data.global_batch} up to total_samples {module.data.total_samples}",
                where=source,
            )
        set_position(trainer, module, seen)
        trainer.precision_plugin.load_state_dict(state.get("scaler", {}))
        parts.guard.in_a_row = int(state.get("nonfinite_in_a_row", 0))
        parts.metrics.load_state(state["metrics"], trainer.global_rank, trainer.world_size)
        parts.validation.pending = bool(state["validation_pending"])
        for records in parts.records:
            records.cut_back(seen, without="val" if parts.validation.pending else None)
        trainer.should_stop = seen == module.data.total_samples and not parts.validation.pending
        if trainer.is_global_zero:
            _log.warning("resumed from %s at %d samples", source, seen)

    def on_train_start(self, trainer: Trainer, pl_module: TrainingModule) -> None:  # type: ignore[override]
        """Stop here where a signal came during the set-up; keep what validation was made up for."""
        seen = pl_module.samples_seen
        number = self._parts.stop.signal()
        if number:
            raise stopped_by(number, seen)
        if seen and self._parts.validation.scores:
            self._save(trainer, pl_module, seen, final=False)
        self._tell(trainer, seen, None)

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
        metrics = _gather(trainer, self._parts.metrics.state())
        checkpoint = self._content(trainer, module, samples_seen, metrics)
        target = step_folder(self.folder, samples_seen)
        error = trainer.strategy.broadcast(
            _outcome(lambda: self._write(target, checkpoint, final), trainer)
        )
        if error is None:
            self._failures = 0
            self._tell(trainer, samples_seen, target)
            return
        self._failures += 1
        if final or self._failures >= _FAILURES:
            raise SaveError(f"{self.folder}: {error}; free some space or move run_dir")
        if trainer.is_global_zero:
            _log.warning("checkpoint %s failed (%s); training goes on", target.name, error)

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
                "network": {"name": type(module.net).__name__, "options": module.net.options},
                "profiles": list(parts.ema.twins),
                "config": parts.config,
                "versions": versions(),
                "fingerprint": fingerprint(module),
                "metrics": metrics,
                "validation_pending": parts.validation.pending,
                "nonfinite_in_a_row": parts.guard.in_a_row,
                "scaler": trainer.precision_plugin.state_dict(),
                "scores": scores,
                "score": next(iter(scores.values()), None),
            },
        )

    def _write(self, target: Path, checkpoint: Checkpoint, final: bool) -> str | None:
        """Write on rank 0; what went wrong, or None."""
        needed = int(1.1 * self._last_size)
        try:
            free = fs.free_bytes(self.folder)
            if free < needed:
                return f"{needed} bytes needed, {free} free"
            manifest = write_checkpoint(target, checkpoint)
        except OSError as error:
            return error.strerror or str(error)
        self._last_size = sum(entry.size for entry in manifest.files)
        self._saves += 1
        try:
            folder.verify(target, hashes=final or self._saves % 10 == 0)
            self._drop_surplus(target)
        except (OSError, UserError) as error:
            _log.warning("after the save of %s: %s", target.name, error)
        return None

    def _drop_surplus(self, saved: Path) -> None:
        """Drop what retention does not keep; the one just saved is the newest."""
        complete = folder.complete(self.folder, STEP_FOLDER)
        scores = {p: read_state(p)["score"] for p in complete if p.name <= saved.name}
        for path in self.retention.surplus(scores):
            folder.discard(path)

    def _set_aside(self, samples_seen: int) -> None:
        """Take checkpoints beyond the resumed position out of the way, on rank 0.

        They are damaged, or of a branch that `resume: PATH` left, and would pass for newer ones.
        """
        for path in fs.list_dir(self.folder):
            if STEP_FOLDER.fullmatch(path.name) and samples_of(path) > samples_seen:
                aside = path.with_name(f"left-{path.name}")
                if fs.exists(aside):
                    folder.discard(aside)
                fs.rename(path, aside)
                _log.warning("%s is beyond this run's position; it is kept as %s", path, aside.name)
        fs.fsync_dir(self.folder)

    def _tell(self, trainer: Trainer, samples_seen: int, target: Path | None) -> None:
        if trainer.is_global_zero:
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
    return {
        **module.data.fingerprint(),
        "model": {"network": type(module.net).__name__, "tensors": shapes},
        "optimizer": {"name": module.optimizer_options.name},
    }


def _names(module: TrainingModule) -> dict[Tensor, str]:
    return {p: name for name, p in module.named_parameters() if p.requires_grad}


def _newest_good(names: list[Path]) -> Path | None:
    for path in reversed(names):
        try:
            folder.verify(path)
            read_state(path)
        except UserError as error:
            _log.warning("%s; falling back to an older checkpoint", error)
            continue
        return path
    return None


def _outcome(action: Callable[[], Any], trainer: Trainer) -> Any:
    """What `action` gives on rank 0, or our error for what it raised: to be broadcast."""
    if not trainer.is_global_zero:
        return None
    try:
        return action()
    except LitRestoreError as error:
        return error
    except OSError as error:
        return SaveError(
            f"{error.filename}: {error.strerror}; mend the disk or choose another run_dir"
        )


def _gather(trainer: Trainer, part: dict[str, Any]) -> list[dict[str, Any]]:
    if trainer.world_size == 1:
        return [part]
    parts: list[Any] = [None] * trainer.world_size
    torch.distributed.all_gather_object(parts, part)
    return parts
