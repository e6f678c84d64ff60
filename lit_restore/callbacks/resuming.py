"""Going on from a checkpoint: finding it on rank 0, loading it on all."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from torch import Tensor

from lit_restore.callbacks.fingerprints import check_fingerprint
from lit_restore.callbacks.horizon import set_position
from lit_restore.callbacks.run_parts import RunParts
from lit_restore.errors import UserError
from lit_restore.io import folder, fs
from lit_restore.training.base import TrainingModule
from lit_restore.weights.checkpoint import (
    STEP_FOLDER,
    load_optimizer,
    open_checkpoint,
    read_state,
    samples_of,
)
from lit_restore.weights.transfer import load_stored

_log = logging.getLogger(__name__)


def find_source(checkpoints: Path, resume: str) -> Path | None:
    """What a run goes on from, verified, after the leftovers of a crash are swept; on rank 0.

    Args:
        checkpoints: the run's folder of checkpoints, made here where it is missing.
        resume: auto, true, false or the path of a checkpoint.

    Raises:
        UserError: there is none where there must be one, or one where there must be none.
        OSError: the disk refused.
    """
    fs.make_dir(checkpoints)
    for place in (checkpoints, checkpoints.parent):
        folder.sweep(place)
    if resume not in ("auto", "true", "false"):
        path = Path(resume)
        folder.verify(path)
        return path
    names = [p for p in fs.list_dir(checkpoints) if STEP_FOLDER.fullmatch(p.name)]
    if resume == "false":
        if names:
            raise UserError(
                f"holds checkpoints up to {names[-1].name}; resume: auto goes on from there, "
                "another run_dir starts afresh",
                where=checkpoints.parent,
            )
        return None
    good = _newest_good(names)
    if good is None and (names or resume == "true"):
        what = "no checkpoint is intact" if names else "holds no checkpoint to resume from"
        raise UserError(f"{what}; resume: PATH names another", where=checkpoints)
    return good


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


def load_run(
    trainer: Trainer,
    module: TrainingModule,
    source: Path,
    parts: RunParts,
    *,
    fingerprint: dict[str, Any],
    names: dict[Tensor, str],
    allow_change: tuple[str, ...],
) -> None:
    """Put everything back as it was after the step that `source` was saved at; on all ranks.

    Args:
        trainer: set up, with its optimiser.
        module: its network may be sharded in another way than when it was saved.
        source: a verified checkpoint folder.
        parts: the other callbacks that have a state.
        fingerprint: of this run.
        names: trained parameter → its name.
        allow_change: fingerprint groups that may differ.

    Raises:
        UserError: it belongs to another run, or does not fit.
    """
    saved = open_checkpoint(source)
    state = saved.state
    check_fingerprint(state["fingerprint"], fingerprint, allow_change, source)
    load_stored(module.net, saved.network, where=source)
    for profile, twin in parts.ema.twins.items():
        if profile not in saved.averages:
            _log.warning("%s has no average %s; it starts from the weights", source, profile)
        load_stored(twin, saved.averages.get(profile, saved.network), where=source)
    load_optimizer(trainer.optimizers[0], names, saved.optimizer, where=source)
    seen = int(state["samples_seen"])
    if seen % module.data.global_batch or seen > module.data.total_samples:
        raise UserError(
            f"stands at {seen} samples: not on a step of data.global_batch "
            f"{module.data.global_batch} up to total_samples {module.data.total_samples}",
            where=source,
        )
    set_position(trainer, module, seen)
    if state.get("scaler"):  # none where it was saved under another precision
        trainer.precision_plugin.load_state_dict(state["scaler"])
    parts.guard.in_a_row = int(state.get("nonfinite_in_a_row", 0))
    parts.metrics.load_state(state["metrics"], trainer.global_rank, trainer.world_size)
    parts.validation.pending = bool(state["validation_pending"])
    for records in parts.records:
        records.cut_back(seen, without="val" if parts.validation.pending else None)
    trainer.should_stop = seen == module.data.total_samples and not parts.validation.pending
    if trainer.is_global_zero:
        _log.warning("resumed from %s at %d samples", source, seen)


def set_aside(checkpoints: Path, samples_seen: int) -> None:
    """Take checkpoints beyond the resumed position out of the way; on rank 0.

    They are damaged, or of a branch that `resume: PATH` left, and would pass for newer ones.

    Raises:
        OSError: the disk refused.
    """
    for path in fs.list_dir(checkpoints):
        if STEP_FOLDER.fullmatch(path.name) and samples_of(path) > samples_seen:
            aside = path.with_name(f"left-{path.name}")
            if fs.exists(aside):
                folder.discard(aside)
            fs.rename(path, aside)
            _log.warning("%s is beyond this run's position; it is kept as %s", path, aside.name)
    fs.fsync_dir(checkpoints)
