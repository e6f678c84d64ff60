"""Which samples each step saw: evidence for a resumed run, and for a bad step."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Trainer

from lit_restore.callbacks.horizon import StepCallback
from lit_restore.callbacks.records import Records
from lit_restore.training.base import TrainingModule


class Trace(StepCallback):
    """Write the keys of every step's samples, of all ranks and in order, to trace.jsonl.

    Args:
        enabled: whether to.
    """

    def __init__(self, enabled: bool = False) -> None:
        self.enabled = enabled
        self.records: Records | None = None
        self._seen: list[tuple[int, str]] = []

    def on_micro_batch(
        self, trainer: Trainer, module: TrainingModule, outputs: dict[str, Any], batch: Any
    ) -> None:
        """Note the samples of a micro-batch."""
        if self.enabled:
            self._seen += zip(batch["position"].tolist(), batch["key"], strict=True)

    def on_step(self, trainer: Trainer, module: TrainingModule, samples_seen: int) -> None:
        """Write a step's samples in the order of their positions."""
        if not self.enabled:
            return
        parts: list[Any] = [self._seen]
        if trainer.world_size > 1:
            parts = [None] * trainer.world_size
            torch.distributed.all_gather_object(parts, self._seen)
        self._seen = []
        if self.records is not None:
            rows = sorted(row for part in parts for row in part)
            self.records.append(
                {
                    "samples_seen": samples_seen,
                    "positions": [position for position, _ in rows],
                    "keys": [key for _, key in rows],
                }
            )
