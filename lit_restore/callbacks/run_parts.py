"""What of a run a checkpoint holds beside the network and its optimiser."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lit_restore.callbacks.ema import EMA
from lit_restore.callbacks.metrics import Metrics
from lit_restore.callbacks.nonfinite import NonFiniteGuard
from lit_restore.callbacks.preemption import StopRequest
from lit_restore.callbacks.records import Records
from lit_restore.callbacks.validation import Validation


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
