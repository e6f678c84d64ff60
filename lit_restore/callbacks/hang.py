"""A process that makes no progress for too long shows where it stands, and leaves."""

from __future__ import annotations

import faulthandler
import warnings
from datetime import timedelta
from typing import Any

import torch.distributed
from lightning.pytorch import Trainer
from torch.distributed import ProcessGroup, distributed_c10d
from torch.distributed.constants import default_pg_timeout

from lit_restore.errors import require_at_least

SLOW = 3
"""The first step (compilation), start-up and saves may take so many times as long as a step."""
MARGIN = 15.0
"""Seconds by which the guard waits longer than a collective: its error can name the lost rank."""


class HangGuard:
    """Ends this process by `faulthandler` unless it is armed anew in time.

    A thread of C watches the clock, so that it works while Python waits in a call that never
    returns. The stacks of all threads go to stderr, and the exit code is 1. The time-outs of the
    training's process groups follow the budgets.

    Args:
        seconds: budget for a step or a batch of validation; `SLOW` times as much for the first
            one, for start-up and for saves; 0 for no guard.
    """

    def __init__(self, seconds: float = 600.0) -> None:
        require_at_least(0, guard__hang_timeout=seconds)
        self.seconds = seconds
        self._groups: list[ProcessGroup] = []
        self._budget = 0.0
        self._started: set[str] = set()

    def prepare(self, strategy: Any) -> None:
        """Set the time-out that the process group is made with, unless the strategy has its own."""
        if self.seconds and getattr(strategy, "_timeout", None) == default_pg_timeout:
            strategy._timeout = timedelta(seconds=SLOW * self.seconds)

    def watch_groups(self, trainer: Trainer, *groups: ProcessGroup) -> None:
        """Let the time-outs of the training's groups follow the budgets, and those of `groups`."""
        if trainer.world_size == 1:
            return
        mesh = getattr(trainer.strategy, "_device_mesh", None)
        of_mesh = [] if mesh is None else mesh.get_all_groups()
        world = distributed_c10d._get_default_group()
        self._groups = list(dict.fromkeys([world, *of_mesh, *groups]))

    def batch(self, kind: str) -> None:
        """A batch begins; the first of its kind may have to be compiled."""
        first = kind not in self._started
        self._started.add(kind)
        self._arm(SLOW * self.seconds if first else self.seconds)

    def slow(self) -> None:
        """Something begins that may take longer than a step: start-up, a save, a grid."""
        self._arm(SLOW * self.seconds)

    def cancel(self) -> None:
        """The run is over; arms nothing."""
        faulthandler.cancel_dump_traceback_later()
        self._groups, self._started, self._budget = [], set(), 0.0

    def _arm(self, seconds: float) -> None:
        if not self.seconds:
            return
        margin = MARGIN if self._groups else 0.0
        faulthandler.dump_traceback_later(seconds + margin, exit=True, file=2)
        if seconds != self._budget:
            self._budget = seconds
            for group in self._groups:
                _set_timeout(timedelta(seconds=seconds), group)


def _set_timeout(timeout: timedelta, group: ProcessGroup) -> None:
    if hasattr(torch.distributed, "set_timeout"):
        torch.distributed.set_timeout(timeout, group)
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        distributed_c10d._set_pg_timeout(timeout, group)
