"""What happens when a gradient is not finite: the step is dropped, the batch kept as evidence."""

from __future__ import annotations

import json
import logging
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import Trainer
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor

from lit_restore.callbacks.horizon import StepCallback
from lit_restore.data.batch import Batch
from lit_restore.errors import TrainingFault
from lit_restore.io import fs, tensors
from lit_restore.training.base import TrainingModule

_log = logging.getLogger(__name__)

_IN_A_ROW = 10
_KEPT = 3


class NonFiniteGuard(StepCallback):
    """Skip steps whose gradient is not finite; stop after ten in a row, or at the first.

    The module has dropped such a gradient before the optimiser saw it: parameters, optimiser and
    averages are untouched, and the position advances. The first three batches are kept in
    `badbatch-<samples>-r<rank>.safetensors`. An overflow under a loss scale (16-mixed) is neither
    counted nor kept: the scale is halved, and that is its mend.

    Args:
        on_nonfinite: "skip" (ten in a row end the run) or "stop" (the first one does).
    """

    def __init__(self, on_nonfinite: Literal["skip", "stop"] = "skip") -> None:
        self.on_nonfinite = on_nonfinite
        self.run_dir = Path()
        self.in_a_row = 0
        self._kept = 0
        self._batches: list[tuple[Batch, Tensor]] = []

    def on_micro_batch(
        self, trainer: Trainer, module: TrainingModule, outputs: dict[str, Any], batch: Any
    ) -> None:
        """Hold the batches of the current step."""
        self._batches.append((batch, outputs["loss"].detach()))

    def on_step(self, trainer: Trainer, module: TrainingModule, samples_seen: int) -> None:
        """Count, tell, keep and, where it must be, stop."""
        batches, self._batches = self._batches, []
        if not module.step_skipped:
            self.in_a_row = 0
            return
        if _scale_too_high(trainer, batches):
            return
        self.in_a_row += 1
        kept = self._keep(batches, module, trainer.global_rank, samples_seen)
        message = f"the gradient at sample {samples_seen} is not finite"
        if self.on_nonfinite == "stop" or self.in_a_row >= _IN_A_ROW:
            row = f", {self.in_a_row} steps in a row" if self.in_a_row > 1 else ""
            raise TrainingFault(f"{message}{row}; {kept}; lower the learning rate or see the batch")
        if trainer.is_global_zero:
            _log.warning("%s; the step is skipped, %s", message, kept)

    def _keep(
        self,
        batches: list[tuple[Batch, Tensor]],
        module: TrainingModule,
        rank: int,
        samples_seen: int,
    ) -> str:
        if self._kept >= _KEPT:
            return "its batch is not kept (three are)"
        self._kept += 1
        path = self.run_dir / f"badbatch-{samples_seen:012d}-r{rank}.safetensors"
        held: dict[str, Tensor] = {}
        notes: dict[str, Any] = {"seed": module.seed, "keys": [], "positions": [], "losses": []}
        for number, (batch, loss) in enumerate(batches):
            notes["keys"] += batch["key"]
            notes["positions"] += batch["position"].tolist()
            notes["losses"].append(str(float(loss)))
            for name in ("image", "degraded", "label", "latent"):
                value = batch.get(name)
                if isinstance(value, Tensor):
                    held[f"{number}/{name}"] = value.detach().cpu()
        try:
            content = BytesIO()
            tensors.save_tensors(content, held, {"batch": json.dumps(notes)})
            fs.write_atomic(path, content.getvalue())
        except OSError as error:
            return f"its batch could not be kept ({error.strerror})"
        return f"its batch is in {path}"


def _scale_too_high(trainer: Trainer, batches: list[tuple[Batch, Tensor]]) -> bool:
    """Whether float16 overflowed only because finite losses were scaled up."""
    plugin = trainer.precision_plugin
    scaler = plugin.scaler if isinstance(plugin, MixedPrecision) else None
    if scaler is None:
        return False
    finite = scaler.get_scale() >= 1 and all(bool(loss.isfinite()) for _, loss in batches)
    return trainer.strategy.reduce_boolean_decision(finite, all=True)
