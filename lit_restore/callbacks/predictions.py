"""`train.py predict`: what the module predicts, written as PNG."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from lit_restore.io import fs, images
from lit_restore.io.quantise import to_uint8


class Predictions(Callback):
    """Write each predicted picture to `predictions/<key>.<column>.png` in the run folder."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Write the pictures of one batch; padding is left out."""
        for column, pictures in outputs.items():
            rows = zip(batch["key"], batch["weight"].tolist(), to_uint8(pictures), strict=True)
            for key, weight, pixels in rows:
                if weight > 0:
                    path = self.run_dir / "predictions" / f"{key}.{column}.png"
                    fs.make_dir(path.parent)
                    images.write_png(path, pixels)
