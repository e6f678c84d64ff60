"""One run put together: its folder, its callbacks in their order, its end."""

from __future__ import annotations

import contextlib
import json
import logging
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from lightning.pytorch import Callback

from lit_restore.callbacks.checkpoints import Checkpoints
from lit_restore.callbacks.ema import EMA, make_twin
from lit_restore.callbacks.guards import Guards
from lit_restore.callbacks.horizon import Horizon
from lit_restore.callbacks.metrics import AfterStep, Metrics
from lit_restore.callbacks.mirror import Mode, WandbMirror
from lit_restore.callbacks.nonfinite import NonFiniteGuard
from lit_restore.callbacks.predictions import Predictions
from lit_restore.callbacks.preemption import StopUse
from lit_restore.callbacks.profile import Profile
from lit_restore.callbacks.progress import Progress
from lit_restore.callbacks.records import Records
from lit_restore.callbacks.run_parts import RunParts
from lit_restore.callbacks.samples import SampleGrid
from lit_restore.callbacks.trace import Trace
from lit_restore.callbacks.validation import Validation
from lit_restore.callbacks.watch import Watch
from lit_restore.data import ShardDataModule
from lit_restore.errors import UserError
from lit_restore.io import folder, fs, lock, status
from lit_restore.io.launch import launch_rank
from lit_restore.io.lock import RunLock
from lit_restore.parallel.apply import Layout
from lit_restore.training.base import TrainingModule
from lit_restore.weights.checkpoint import STEP_FOLDER, read_checkpoint
from lit_restore.weights.fine_tune import initialise
from lit_restore.weights.transfer import load_exactly

_log = logging.getLogger(__name__)

_BARE = {lock.NAME, status.NAME, "checkpoints", "config.yaml"}
"""What a run folder holds before the first step."""


class MirrorOptions(Protocol):
    """What the W&B mirror needs to know."""

    @property
    def mode(self) -> str:
        """auto, online, offline or off."""

    @property
    def project(self) -> str:
        """The W&B project."""


@dataclass
class Run:
    """The parts of one run; `callbacks` is the order in which they act on a step.

    The averages follow the weights first; the checkpoint comes last and so holds what all others
    left behind.
    """

    run_dir: Path
    config: dict[str, Any]
    subcommand: str
    ema: EMA
    checkpoints: Checkpoints
    validation: Validation
    metrics: Metrics
    samples: SampleGrid
    guards: Guards
    trace: Trace
    wandb: MirrorOptions
    layout: Layout
    profile: Profile = field(default_factory=Profile)

    def __post_init__(self) -> None:
        self.guard = NonFiniteGuard(self.guards.on_nonfinite)
        self.watch = Watch(self.guards, self.run_dir, is_fit=self.subcommand == "fit")
        self.stop = self.watch.stop
        self.lock: RunLock | None = None
        self.is_new = False
        """Whether this process made the run folder."""
        self.was_refused = False
        """Whether the input was wrong."""
        self.records = Records(self.run_dir / "metrics.jsonl", writes=launch_rank() == 0)

    @property
    def callbacks(self) -> list[Callback]:
        """All callbacks of the subcommand, in order."""
        if self.subcommand == "predict":
            return [self.watch, StopUse(self.stop), self.ema, Predictions(self.run_dir)]
        if self.subcommand != "fit":
            return [self.watch, StopUse(self.stop), self.ema, self.validation]
        progress = Progress(self.metrics, self.validation)
        return [
            self.watch,
            Horizon(self.stop),
            self.ema,
            self.metrics,
            self.trace,
            self.guard,
            self.validation,
            self.samples,
            progress,
            self.checkpoints,
            self.profile,
            AfterStep(self.metrics),
        ]

    def start(self, module: TrainingModule) -> None:
        """Make and lock the run folder, wire the parts together.

        Raises:
            UserError: the folder cannot be written, or another run is in it.
        """
        self.is_new = not fs.exists(self.run_dir)
        try:
            if self.subcommand == "fit" and self.records.writes:
                fs.make_dir(self.run_dir)
                fs.check_writable(self.run_dir)
        except OSError as error:
            raise UserError(
                f"cannot write ({error.strerror}); choose another run_dir", where=self.run_dir
            ) from None
        if self.subcommand == "fit" and self.records.writes:
            self.lock = RunLock(self.run_dir)
        module.layout = self.layout
        self.validation.records = self.metrics.records = self.samples.records = self.records
        self.validation.stop = self.samples.stop = self.stop
        self.trace.records = Records(self.run_dir / "trace.jsonl", writes=self.records.writes)
        self.guard.run_dir = self.samples.run_dir = self.profile.run_dir = self.run_dir
        self.profile.metrics, self.profile.compiled = self.metrics, self.layout.compile
        self.checkpoints.parts = RunParts(
            run_dir=self.run_dir,
            config=self.config,
            metrics=self.metrics,
            validation=self.validation,
            guard=self.guard,
            ema=self.ema,
            records=(self.records, self.trace.records),
            stop=self.watch.stop_in_steps,
        )
        if self.subcommand == "fit" and self.wandb.mode != "off" and self.records.writes:
            mode: Mode = self.wandb.mode  # type: ignore[assignment]
            self.records.mirror = WandbMirror(
                self.run_dir, project=self.wandb.project, mode=mode, config=self.config
            )

    def load_for_use(self, module: TrainingModule) -> None:
        """Fill the network and its averages for validation, test or prediction.

        From `resume: PATH`, else `init_from`, else the newest good checkpoint of the run folder.

        Raises:
            UserError: there is nothing to use.
        """
        self.ema.twins = {name: make_twin(module.net) for name in self.ema.profiles}
        named = self.checkpoints.resume not in ("auto", "true", "false")
        source = Path(self.checkpoints.resume) if named else self._newest()
        if source is not None:
            folder.verify(source)
            saved = read_checkpoint(source)
            load_exactly(module.net, saved.network, where=source)
            for name, twin in self.ema.twins.items():
                load_exactly(twin, saved.averages.get(name, saved.network), where=source)
        elif self.checkpoints.init_from is not None:
            initialise(module.net, Path(self.checkpoints.init_from))
            self.ema.twins = {name: make_twin(module.net) for name in self.ema.profiles}
        else:
            raise UserError(
                "holds no checkpoint; give resume: PATH or init_from: FILE", where=self.run_dir
            )

    def _newest(self) -> Path | None:
        parent = self.run_dir / "checkpoints"
        found = folder.complete(parent, STEP_FOLDER) if fs.is_dir(parent) else []
        return found[-1] if found else None

    def tell_scores(self, module: TrainingModule) -> None:
        """Print the validation's means."""
        if self.subcommand == "predict":
            return
        means = module.validation_means()  # a collective call: on all ranks
        if module.trainer.is_global_zero:
            for name, value in means.items():
                print(f"{name} {value:.4f}", file=sys.stdout)

    def close(self, data: ShardDataModule) -> None:
        """End the records; leave the list of what could not be read, and no empty run folder."""
        self.checkpoints.close()
        self.records.close()
        if data.bad is not None and data.bad.reasons:
            self._report(data.bad.reasons)
        if self.lock is not None:
            if self.is_new and self.was_refused:
                self._remove_if_empty()
            self.lock.release()

    def _report(self, reasons: dict[str, str]) -> None:
        """Add to the list of bad samples; every rank that met some has one."""
        rank = launch_rank()
        path = self.run_dir / (f"bad_samples-r{rank}.json" if rank else "bad_samples.json")
        try:
            before = json.loads(fs.read_text(path)) if fs.exists(path) else {}
            fs.write_atomic(path, json.dumps({**before, **reasons}, indent=1) + "\n")
        except (OSError, ValueError) as error:
            _log.warning("%s could not be written: %s", path, error)

    def _remove_if_empty(self) -> None:
        """What was refused before it began leaves nothing behind."""
        checkpoints = self.run_dir / "checkpoints"
        inside = fs.list_dir(checkpoints) if fs.is_dir(checkpoints) else []
        if not inside and {path.name for path in fs.list_dir(self.run_dir)} <= _BARE:
            with contextlib.suppress(OSError):
                fs.remove_tree(self.run_dir)
