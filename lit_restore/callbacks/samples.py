"""Sample grids during training: input, output and truth of fixed images, as PNG and in W&B."""

from __future__ import annotations

import logging
import math
import sys
import time
from pathlib import Path

import numpy as np
import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn
from tqdm import tqdm

from lit_restore.callbacks.horizon import StepCallback
from lit_restore.callbacks.preemption import StopRequest
from lit_restore.callbacks.records import Records
from lit_restore.data.batch import Batch, Refusal, Sample, collate
from lit_restore.data.crops import middle
from lit_restore.data.samples import OrderedSamples
from lit_restore.errors import UserError, require_at_least
from lit_restore.io import failpoints, fs, images
from lit_restore.io.quantise import to_uint8
from lit_restore.training.base import TrainingModule

_log = logging.getLogger(__name__)

_GAP = 4
_PATIENCE = 20.0
"""Seconds of drawing after which a line says so."""


class SampleGrid(StepCallback):
    """Draw a grid with the averaged weights: of the first validation images, or of made ones.

    Args:
        every: images between grids, rounded up to whole steps; 0 for the end only.
        count: number of images; one a row with its input, or in a square where there is none.
        size: side of the centre crop that is shown, pixels; made images are shown whole.
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
        if ("val" not in module.data.sources and module.needs_input) or self.count < 1:
            return False
        last = samples_seen == module.data.total_samples
        return last or self.due(self.every, module, samples_seen)

    def _path(self, samples_seen: int) -> Path:
        return self.run_dir / "samples" / f"grid-{samples_seen:012d}.png"

    def _draw(self, trainer: Trainer, module: TrainingModule, samples_seen: int) -> None:
        last = samples_seen == module.data.total_samples  # no resumed run would draw it
        if not last and self.stop is not None and self.stop.signal():
            return  # drawn when the run is resumed
        draw = self._rows if module.needs_input else self._made
        rows = draw(trainer, module, last)
        if not rows:
            return
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

    def _rows(
        self, trainer: Trainer, module: TrainingModule, last: bool
    ) -> list[dict[str, Tensor]]:
        """Pictures of the first validation images; none where a signal asks to leave."""
        rows: list[dict[str, Tensor]] = []
        for number in range(min(self.count, len(module.data.sources["val"]))):
            if not last and self.stop is not None and self.stop.signal():
                return []
            failpoints.hit("grid.draw")
            with torch.no_grad(), trainer.precision_plugin.forward_context():
                rows.append(module.pictures(module.eval_net, self._batch(module, number)))
        return rows

    def _made(
        self, trainer: Trainer, module: TrainingModule, last: bool
    ) -> list[dict[str, Tensor]]:
        """Pictures made of nothing, in a square; none where a signal asks to leave."""
        net, watch = module.eval_net, _Drawing(module, None if last else self.stop)
        # At each call of the network, for a grid can take minutes; before any hook that gathers it.
        handle = net.register_forward_pre_hook(watch, prepend=True)
        try:
            with torch.no_grad(), trainer.precision_plugin.forward_context():
                made = module.drawn(net, self.count)
        except _StopDrawing:
            return []
        finally:
            handle.remove()
        side = math.ceil(math.sqrt(len(made)))
        return [
            {str(column): picture[None] for column, picture in enumerate(row)}
            for row in torch.split(made, side)
        ]

    def _batch(self, module: TrainingModule, number: int) -> Batch:
        samples = OrderedSamples(module.data.sources["val"], crop=None)
        sample = samples[number]
        if isinstance(sample, Sample):
            degradation = module.data.degradation
            multiple = 1 if degradation is None else degradation.multiple
            sample = middle(sample, self.size, multiple)
        batch = collate([sample])
        if isinstance(batch, Refusal):
            raise UserError(batch.message, where=batch.where)
        moved = module.data.transfer_batch_to_device(batch, module.device, 0)
        return module.data.on_after_batch_transfer(moved, 0)


class _StopDrawing(Exception):
    """Leaves a grid between two calls of the network."""


class _Drawing:
    """What happens before each call of the network that draws: a look for signals, and a line.

    All ranks draw the same pictures, so they call alike and can ask each other.

    Args:
        module: what draws.
        stop: asked whether to leave; none to draw on in any case.
    """

    def __init__(self, module: TrainingModule, stop: StopRequest | None) -> None:
        self.module, self.stop = module, stop
        self.calls, self.started, self.told = 0, time.monotonic(), 0.0

    def __call__(self, net: nn.Module, args: object) -> None:
        """Leave where a signal asks for it; say every `_PATIENCE` seconds that it goes on."""
        failpoints.hit("grid.draw")
        if self.stop is not None and self.stop.signal():
            raise _StopDrawing
        seconds = time.monotonic() - self.started
        if seconds - self.told > _PATIENCE and self.module.trainer.is_global_zero:
            self.told = seconds
            tqdm.write(  # beside a bar, where there is one
                f"{self.module.samples_seen:>9,}  drawing a grid: {self.calls} calls of the "
                f"network in {seconds:.0f} s",
                file=sys.stderr,
            )
        self.calls += 1


def tile(rows: list[dict[str, Tensor]]) -> np.ndarray:
    """Pictures in rows and columns on white.

    Args:
        rows: one dict a row, column name → (1, 3, H, W) in [0, 1]; the last may be shorter.

    Returns:
        (H', W', 3) uint8.
    """
    cells = [[to_uint8(picture)[0] for picture in row.values()] for row in rows]
    height = _GAP + max(cell.shape[0] for row in cells for cell in row)
    width = _GAP + max(cell.shape[1] for row in cells for cell in row)
    sheet = np.full((len(cells) * height, max(map(len, cells)) * width, 3), 255, np.uint8)
    for line, row in enumerate(cells):
        for column, cell in enumerate(row):
            top, left = line * height, column * width
            sheet[top : top + cell.shape[0], left : left + cell.shape[1]] = cell
    return sheet[:-_GAP, :-_GAP]
