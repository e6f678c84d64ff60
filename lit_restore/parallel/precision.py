"""Which numerical precision can be trusted where."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from lit_restore.errors import UserError

_ALWAYS = ("32", "32-true", "64", "64-true", "bf16-mixed")
_SCALED = ("16", "16-mixed")
_SCALED_STRATEGIES = ("auto", "ddp", "single_device")


def check_precision(trainer: Mapping[str, Any]) -> None:
    """Refuse a precision that would not train well with the chosen device and strategy.

    Args:
        trainer: the Trainer's options.

    Raises:
        UserError: not float32, float64, bf16-mixed, or 16-mixed on CUDA with one process or DDP.
    """
    precision = str(trainer.get("precision") or "32-true")
    if precision in _ALWAYS:
        return
    where = "trainer.precision"
    if precision not in _SCALED:
        raise UserError(f"{precision} is not offered; use 32 or bf16-mixed", where=where)
    accelerator = str(trainer.get("accelerator"))
    on_cuda = accelerator in ("cuda", "gpu") or (
        accelerator == "auto" and torch.cuda.is_available()
    )
    strategy = trainer.get("strategy")
    scaled = isinstance(strategy, str) and strategy in _SCALED_STRATEGIES
    if not on_cuda or not torch.cuda.is_available() or not scaled:
        raise UserError(
            "16-mixed needs CUDA with one process or DDP; use bf16-mixed here", where=where
        )
