"""Which strategies a run works under."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy

from lit_restore.errors import UserError
from lit_restore.parallel.fsdp2 import FSDP2Strategy

_OFFERED = (
    "auto",
    "single_device",
    "ddp",
    "ddp_find_unused_parameters_false",
    "ddp_find_unused_parameters_true",
    "fsdp2",
)
_STARTED_APART = (None, "popen")


def check_strategy(trainer: Mapping[str, Any]) -> None:
    """Refuse a strategy that the records and checkpoints of a run do not work under.

    Ranks that are forked or spawned by the Trainer would each think to be the first: they come
    into being after the run's parts are made.

    Args:
        trainer: the Trainer's options.

    Raises:
        UserError: neither one device nor DDP with a process of its own for each rank.
    """
    strategy = trainer.get("strategy", "auto")
    name = strategy if isinstance(strategy, str) else type(strategy).__name__
    fine = strategy in _OFFERED or type(strategy) in (SingleDeviceStrategy, FSDP2Strategy)
    if type(strategy) is DDPStrategy:  # of itself: DeepSpeed's is one too
        name = f"start_method {strategy._start_method}"
        fine = strategy._start_method in _STARTED_APART
    if not fine:
        raise UserError(f"{name} is not offered; use ddp or fsdp2", where="trainer.strategy")
