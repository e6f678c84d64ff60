"""The ranks' agreement that a signal asked the run to stop."""

from __future__ import annotations

import signal

import torch
import torch.distributed
from lightning.pytorch import Callback, LightningModule, Trainer

from lit_restore.callbacks.hang import HangGuard
from lit_restore.errors import Interrupted, LitRestoreError, Preempted
from lit_restore.io import signals


class StopRequest:
    """Whether any rank was asked to stop; the same answer on all of them.

    Lightning broadcasts rank 0's flag on the device at every step and deadlocks when all ranks are
    signalled (framework.md §4.2); ours is one small reduction on the CPU, and its own is put off.

    Args:
        hang: given its longer budget after each answer: a save or a grid may follow.
    """

    def __init__(self, hang: HangGuard | None = None) -> None:
        self.hang = hang or HangGuard(0)
        self.group: torch.distributed.ProcessGroup | None = None
        """A gloo group of all ranks; none with one process."""
        self._agreed = 0

    def take_signals(self, trainer: Trainer) -> None:
        """Keep Lightning from putting its own handlers in place; in a `setup` hook.

        SLURM's automatic requeueing is one of them, so that is off as well.
        """
        trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]

    def start(self, trainer: Trainer) -> None:
        """Make what the ranks agree by, once they have joined."""
        signals.reinstall()
        loop = trainer.fit_loop.epoch_loop
        if hasattr(loop, "_broadcast_sigterm_tensor"):
            loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]
        if trainer.world_size > 1 and self.group is None:
            group = torch.distributed.new_group(backend="gloo")
            assert isinstance(group, torch.distributed.ProcessGroup)
            self.group = group

    def signal(self) -> int:
        """The highest signal number any rank received, 0 for none; a collective call.

        Once the ranks have agreed on a signal, all of them know and need not ask again.
        """
        if self.group is None:
            number = signals.requested() or 0
        elif self._agreed:
            number = self._agreed
        else:
            seen = torch.tensor([signals.requested() or 0])
            torch.distributed.all_reduce(seen, torch.distributed.ReduceOp.MAX, group=self.group)
            number = self._agreed = int(seen)
        self.hang.slow()
        return number

    def agreed(self) -> int:
        """The last answer, without asking; with one process what came so far."""
        self.hang.slow()
        return self._agreed if self.group is not None else signals.requested() or 0

    def close(self) -> None:
        """Forget the group, which ends with the process group."""
        self.group = None


class EveryFew(StopRequest):
    """Asks the ranks only every few calls, in between it repeats what they agreed on.

    Args:
        stop: asks.
        calls: from one question to the next; the first call is one.
    """

    def __init__(self, stop: StopRequest, calls: int) -> None:
        super().__init__(stop.hang)
        self._stop, self._calls = stop, calls
        self._count = -1

    def signal(self) -> int:
        """As `StopRequest.signal`, where it is due."""
        self._count += 1
        return self._stop.agreed() if self._count % self._calls else self._stop.signal()


class StopUse(Callback):
    """Ends `validate`, `test` and `predict` after the batch in which a signal came.

    Raises:
        Preempted, Interrupted: from the hooks; nothing is lost, as nothing was to be saved.
    """

    def __init__(self, stop: StopRequest) -> None:
        self.stop = stop

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Keep the signals."""
        self.stop.take_signals(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make what the ranks agree by."""
        self.stop.start(trainer)

    def on_validation_batch_end(self, *args: object, **kwargs: object) -> None:
        """Stop here where it is asked for."""
        number = self.stop.signal()
        if number:
            raise stopped_by(number, 0)

    def on_test_batch_end(self, *args: object, **kwargs: object) -> None:
        """As in validation."""
        self.on_validation_batch_end()

    def on_predict_batch_end(self, *args: object, **kwargs: object) -> None:
        """As in validation."""
        self.on_validation_batch_end()

    on_test_start = on_predict_start = on_validation_start


def stopped_by(number: int, samples_seen: int) -> LitRestoreError:
    """The error that ends a run stopped by signal `number`, with its state saved."""
    kind = Interrupted if number == signal.SIGINT else Preempted
    name = signal.Signals(number).name
    saved = f"saved after {samples_seen} samples, resume to go on"
    return kind(f"stopped by {name}; {saved if samples_seen else 'nothing to save yet'}")
