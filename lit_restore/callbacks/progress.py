"""What a person watching the run sees: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Any

from lightning.pytorch import Trainer
from tqdm import tqdm

from lit_restore.callbacks.horizon import StepCallback
from lit_restore.callbacks.metrics import Metrics
from lit_restore.callbacks.validation import Validation
from lit_restore.training.base import TrainingModule

_WIDTH = 72
"""Characters of a record where lines are printed."""
_BAR = 55
"""Characters that the bar and its counts want."""


class Progress(StepCallback):
    """Loss, PSNR, images/s, data wait, MFU, memory and time left, from the last record.

    Args:
        metrics: holds the last record.
        validation: holds the last validation.
    """

    def __init__(self, metrics: Metrics, validation: Validation) -> None:
        self.metrics = metrics
        self.validation = validation
        self._bar: tqdm[Any] | None = None
        self._shown: dict[str, float] = {}
        self._validated: dict[str, float] = {}
        self._start = (0.0, 0)

    def on_train_start(self, trainer: Trainer, pl_module: TrainingModule) -> None:  # type: ignore[override]
        """Open the bar at the position of the run."""
        self._start = (time.monotonic(), pl_module.samples_seen)
        if trainer.is_global_zero:
            self._describe(pl_module)
            if sys.stderr.isatty():
                self._bar = tqdm(
                    total=pl_module.data.total_samples,
                    initial=pl_module.samples_seen,
                    unit="img",
                    unit_scale=True,
                    dynamic_ncols=True,
                )

    def on_step(self, trainer: Trainer, module: TrainingModule, samples_seen: int) -> None:
        """Advance; show new numbers where there are any."""
        if not trainer.is_global_zero:
            return
        if self._bar is not None:
            self._bar.update(module.data.global_batch)
        record, scores = self.metrics.latest, self.validation.scores
        if record and record is not self._shown:
            self._shown = record
            self._show(samples_seen, module.data.total_samples, describe(record, self._room()))
        if scores and scores is not self._validated:
            self._validated = scores
            text = "  ".join(f"{name} {value:.2f}" for name, value in scores.items())
            self._line(f"{samples_seen:>9,}  validation: {text}")

    def on_train_end(self, trainer: Trainer, pl_module: TrainingModule) -> None:  # type: ignore[override]
        """Close the bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def on_exception(  # type: ignore[override]
        self, trainer: Trainer, pl_module: TrainingModule, exception: BaseException
    ) -> None:
        """Close the bar before the error line."""
        self.on_train_end(trainer, pl_module)

    def _show(self, samples_seen: int, total: int, text: str) -> None:
        if self._bar is not None:
            self._bar.set_postfix_str(text, refresh=False)
            return
        started, first = self._start
        rate = (samples_seen - first) / max(time.monotonic() - started, 1e-9)
        left = (total - samples_seen) / max(rate, 1e-9)
        self._line(f"{samples_seen:>9,}/{total:,}  {text}  {_clock(left)} left")

    def _room(self) -> int:
        """Characters for a record: beside the bar, or on a line of its own."""
        columns = getattr(self._bar, "ncols", None)
        return _WIDTH if columns is None else columns - _BAR

    def _line(self, text: str) -> None:
        if self._bar is not None:
            self._bar.write(text, file=sys.stderr)
        else:
            print(text, file=sys.stderr, flush=True)

    def _describe(self, module: TrainingModule) -> None:
        plan = module.data.plan()
        count = sum(p.numel() for p in module.net.parameters())
        trained = sum(p.numel() for p in module.net.parameters() if p.requires_grad)
        self._line(
            f"{module.net.kind}: {count:,} parameters ({trained:,} trained); "
            f"{plan.total_samples:,} samples = {plan.steps:,} steps of {plan.global_batch} "
            f"({plan.world} rank x {plan.accumulation} x {plan.micro})"
        )


def describe(record: dict[str, float], width: int = _WIDTH) -> str:
    """One line of a training record; MFU and memory where `width` characters have room."""
    parts = [f"loss {record['loss']:.5f}"]
    if "psnr" in record:
        parts.append(f"psnr {record['psnr']:.2f} dB")
    parts.append(f"{record['images_per_second']:.0f} img/s")
    parts.append(f"data wait {100 * record['data_wait']:.0f} %")
    if record.get("skipped_steps"):
        parts.append(f"{record['skipped_steps']:.0f} steps skipped")
    text = "  ".join(parts)
    for extra in _extras(record):
        if len(text) + 2 + len(extra) <= width:
            text += f"  {extra}"
    return text


def _extras(record: dict[str, float]) -> list[str]:
    extras = [f"MFU {100 * record['mfu']:.0f} %"] if "mfu" in record else []
    if "memory_gb" in record:
        extras.append(f"{record['memory_gb']:.1f} GB")
    return extras


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"
