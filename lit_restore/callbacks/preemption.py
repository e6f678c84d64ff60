"""The ranks' agreement that a signal asked the run to stop."""

from __future__ import annotations

import signal

import torch
import torch.distributed
from lightning.pytorch import Trainer

from lit_restore.errors import Interrupted, LitRestoreError, Preempted
from lit_restore.io import signals


class StopRequest:
    """Whether any rank was asked to stop; the same answer on all of them.

    Lightning broadcasts rank 0's flag on the device at every step and deadlocks when all ranks are
    signalled (framework.md §4.2); ours is one small reduction on the CPU, and its own is put off.
    """

    def __init__(self) -> None:
        self._group: torch.distributed.ProcessGroup | None = None

    def start(self, trainer: Trainer) -> None:
        """Take the signals back from Lightning, once its own handlers are registered."""
        signals.reinstall()
        loop = trainer.fit_loop.epoch_loop
        if hasattr(loop, "_broadcast_sigterm_tensor"):
            loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]
        if trainer.world_size > 1 and self._group is None:
            group = torch.distributed.new_group(backend="gloo")
            assert isinstance(group, torch.distributed.ProcessGroup)
            self._group = group

    def signal(self) -> int:
        """The highest signal number any rank received, 0 for none; a collective call."""
        number = signals.requested() or 0
        if self._group is None:
            return number
        seen = torch.tensor([number])
        torch.distributed.all_reduce(seen, torch.distributed.ReduceOp.MAX, group=self._group)
        return int(seen)

    def close(self) -> None:
        """Forget the group, which ends with the process group."""
        self._group = None


def stopped_by(number: int, samples_seen: int) -> LitRestoreError:
    """The error that ends a run stopped by signal `number`, with its state saved."""
    kind = Interrupted if number == signal.SIGINT else Preempted
    name = signal.Signals(number).name
    saved = f"saved after {samples_seen} samples, resume to go on"
    return kind(f"stopped by {name}; {saved if samples_seen else 'nothing to save yet'}")
