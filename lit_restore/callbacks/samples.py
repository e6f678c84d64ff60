"""Sample grids during training: input, output and truth of fixed images, as PNG and in W&B."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import torch
from lightning.pytorch import Trainer
from torch import Tensor

from lit_restore.callbacks.horizon import StepCallback
from lit_restore.callbacks.preemption import StopRequest
from lit_restore.callbacks.records import Records
from lit_restore.data.batch import Batch, Refusal, Sample, collate
from lit_restore.data.samples import OrderedSamples
from lit_restore.errors import UserError, require_at_least
from lit_restore.evaluation.quantise import to_uint8
from lit_restore.io import failpoints, fs, images
from lit_restore.training.base import TrainingModule

_log = logging.getLogger(__name__)

_GAP = 4


class SampleGrid(StepCallback):
    """Draw a grid of the first validation images with the averaged weights.

    Args:
        every: images between grids, rounded up to whole steps; 0 for the end only.
        count: number of images, one a row.
        size: side of the centre crop that is shown, pixels.
    """

    def __init__(self, every: int = 0, count: int = 3, size: int = 192) -> None:
        require_at_least(0, samples__every=every, samples__count=count)
        require_at_least(1, samples__size=size)
        self.every, self.count, self.size = every, count, size
        self.run_dir = Path()
        self.records: Records | None = None
        self.stop: StopRequest | None = None

    def on_train_start(self, trainer: Trainer, pl_module: TrainingModule) -> None:  # type: ignore[override]
        """Draw what a stopped run left undrawn."""
        seen = pl_module.samples_seen
        if self._due(pl_module, seen) and seen and not fs.exists(self._path(seen)):
            self._draw(trainer, pl_module, seen)

    def on_step(self, trainer: Trainer, module: TrainingModule, samples_seen: int) -> None:
        """Draw where it is due."""
        if self._due(module, samples_seen):
            self._draw(trainer, module, samples_seen)

    def _due(self, module: TrainingModule, samples_seen: int) -> bool:
        if "val" not in module.data.sources or self.count < 1:
            return False
        last = samples_seen == module.data.total_samples
        return last or self.due(self.every, module, samples_seen)

    def _path(self, samples_seen: int) -> Path:
        return self.run_dir / "samples" / f"grid-{samples_seen:012d}.png"

    def _draw(self, trainer: Trainer, module: TrainingModule, samples_seen: int) -> None:
        last = samples_seen == module.data.total_samples  # a few seconds, and the run is done
        rows = []
        for number in range(min(self.count, len(module.data.sources["val"]))):
            if not last and self.stop is not None and self.stop.signal():
                return  # drawn when the run is resumed
            failpoints.hit("grid.draw")
            with torch.no_grad(), trainer.precision_plugin.forward_context():
                rows.append(module.pictures(module.eval_net, self._batch(module, number)))
        path = self._path(samples_seen)
        if trainer.is_global_zero:
            try:
                fs.make_dir(path.parent)
                images.write_png(path, tile(rows))
            except OSError as error:  # a full disk ends no training; the saves decide that
                _log.warning("%s could not be written: %s", path, error.strerror)
                return
            if self.records is not None:
                self.records.picture(samples_seen, "samples", path)

    def _batch(self, module: TrainingModule, number: int) -> Batch:
        samples = OrderedSamples(module.data.sources["val"], crop=None)
        sample = samples[number]
        if isinstance(sample, Sample):
            sample.image = _middle(sample.image, self.size)
            sample.degraded = None
        batch = collate([sample])
        if isinstance(batch, Refusal):
            raise UserError(batch.message, where=batch.where)
        moved = module.data.transfer_batch_to_device(batch, module.device, 0)
        return module.data.on_after_batch_transfer(moved, 0)


def _middle(image: np.ndarray, size: int) -> np.ndarray:
    top, left = (max(0, (side - size) // 2) for side in image.shape[:2])
    return image[top : top + size, left : left + size]


def tile(rows: list[dict[str, Tensor]]) -> np.ndarray:
    """Pictures in rows and columns on white.

    Args:
        rows: one dict a row, column name → (1, 3, H, W) in [0, 1].

    Returns:
        (H', W', 3) uint8.
    """
    cells = [[to_uint8(picture)[0] for picture in row.values()] for row in rows]
    height = max(cell.shape[0] for row in cells for cell in row)
    width = max(cell.shape[1] for row in cells for cell in row)
    lines = []
    for row in cells:
        line = np.full((height + _GAP, len(row) * (width + _GAP), 3), 255, np.uint8)
        for column, cell in enumerate(row):
            left = column * (width + _GAP)
            line[: cell.shape[0], left : left + cell.shape[1]] = cell
        lines.append(line)
    return np.concatenate(lines)[:-_GAP, :-_GAP]
