"""Watches over a run from its start to its end: hung, left behind, or with dead data workers."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer

from lit_restore.callbacks.children import Children
from lit_restore.callbacks.dead_workers import dead_worker
from lit_restore.callbacks.guards import Guards
from lit_restore.callbacks.hang import HangGuard
from lit_restore.callbacks.peers import PeerLost, Peers, code_of, is_lost_connection
from lit_restore.callbacks.preemption import EveryFew, StopRequest
from lit_restore.errors import ExitCode, RankLost
from lit_restore.io import fs, launch, status
from lit_restore.weights.checkpoint import STEP_FOLDER, samples_of

TICK = 0.5
_ASK = 5.0
"""Seconds between looks at the other ranks of this machine."""
GRACE = 5.0
"""Seconds in which a rank has to notice by itself that another one is gone."""
LEAVE = 3.0
"""Seconds that data workers and children get once a rank is lost."""


class Watch(Callback):
    """The first callback of a run, and the frame around it (`over`).

    Args:
        guards: the options.
        run_dir: its checkpoints are named in error lines; STATUS.json is written there.
        is_fit: whether the run saves, so that there is a STATUS.json.
    """

    def __init__(self, guards: Guards, run_dir: Path, *, is_fit: bool) -> None:
        self.hang = HangGuard(guards.hang_timeout)
        self.stop = StopRequest(self.hang)
        self.stop_in_steps = EveryFew(self.stop, guards.poll_every)
        """The same for the training loop, which need not ask at each step."""
        self.peers = Peers(launch.parent())
        self.run_dir, self.is_fit = run_dir, is_fit
        self._children: Children | None = None
        self._over = threading.Event()
        self._leave_at = float("inf")
        self._ask_at = 0.0

    @contextlib.contextmanager
    def over(self, trainer: Trainer) -> Iterator[None]:
        """Run the trainer inside.

        Raises:
            RankLost: in place of the errors by which a lost rank or data worker shows.
        """
        os.environ.setdefault("TORCH_NCCL_DUMP_ON_TIMEOUT", "1")
        self.hang.prepare(trainer.strategy)
        launcher = trainer.strategy._launcher = Children.instead_of(trainer.strategy.launcher)
        self._children = launcher if isinstance(launcher, Children) else None
        self._over.clear()
        threading.Thread(target=self._look, daemon=True).start()
        lost: RankLost | None = None
        try:
            yield
            self.peers.say(ExitCode.OK, "")
        except BaseException as error:
            lost = self._explained(error, trainer)
            if lost is None:
                self.peers.say(code_of(error), _one_line(error))
                raise
            self.peers.say(lost.code, str(lost))
            self._tell(lost)
            raise lost from error
        finally:
            self._over.set()
            self.hang.cancel()
            self.stop.close()
            if self._children is not None:
                self._children.end(*(() if lost is None else (LEAVE,)))

    # --- hooks ------------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Meet the other ranks; from here on the guard is armed."""
        self.stop.take_signals(trainer)
        self.stop.start(trainer)
        self.peers.meet(self.stop.group)
        self.hang.watch_groups(trainer, *(() if self.stop.group is None else (self.stop.group,)))
        self.hang.slow()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The groups of a mesh are there by now."""
        self.hang.watch_groups(trainer, *(() if self.stop.group is None else (self.stop.group,)))
        self.hang.slow()

    def on_train_batch_start(self, *args: object, **kwargs: object) -> None:
        """A step has its budget."""
        self.hang.batch("train")

    def on_train_batch_end(self, *args: object, **kwargs: object) -> None:
        """What follows may be a save, a grid, or a wait for data that come from elsewhere."""
        self.hang.slow()

    def on_validation_start(self, *args: object, **kwargs: object) -> None:
        """A loader starts its workers."""
        self.hang.slow()

    on_test_start = on_predict_start = on_validation_start

    def on_validation_batch_start(self, *args: object, **kwargs: object) -> None:
        """A batch of validation has the budget of a step."""
        self.hang.batch("validation")

    on_test_batch_start = on_predict_batch_start = on_validation_batch_start

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Tell the others why, before they notice; bound what is left to do where one is lost."""
        if is_lost_connection(exception) and trainer.world_size > 1:
            # On a GPU the clean-up may wait for a collective that never ends.
            self._leave_at = time.monotonic() + GRACE + LEAVE
        elif dead_worker(exception) is None:
            self.peers.say(code_of(exception), _one_line(exception))

    # --- leaving ----------------------------------------------------------------------------------

    def _explained(self, error: BaseException, trainer: Trainer) -> RankLost | None:
        if isinstance(error, RankLost):
            return error
        worker = dead_worker(error)
        if worker is not None:
            return worker
        if trainer.world_size > 1 and is_lost_connection(error):
            return self.peers.loss(self._saved(), self._written_by_first)
        return None

    def _look(self) -> None:
        """In a thread: end this process if it does not notice that another one is gone.

        A collective of NCCL may wait for a dead rank until its time-out.
        """
        while not self._over.wait(TICK):
            now = time.monotonic()
            if now > self._leave_at and not self._over.is_set():
                self._leave()
            if self._leave_at == float("inf") and (
                self.peers.dead() or self._dead_child() or self._failed_peer(now)
            ):
                self._leave_at = time.monotonic() + GRACE

    def _failed_peer(self, now: float) -> bool:
        """Whether a rank said that it ends with an error; asked every few seconds."""
        if not self.peers.others or now < self._ask_at:
            return False
        self._ask_at = now + _ASK
        return self.peers.failed()

    def _dead_child(self) -> str | None:
        """A child that failed before the ranks met, which its parent waits for."""
        failed = None if self._children is None or self.peers.others else self._children.failed()
        return failed and f"{failed}; {self._saved()}"

    def _leave(self) -> None:
        child = self._dead_child()
        lost = PeerLost(child) if child else self.peers.loss(self._saved(), self._written_by_first)
        if self._over.is_set():
            return
        self._tell(lost)
        if self._children is not None:
            self._children.kill_all()
        os.write(2, f"error: {lost}\n".encode())
        os._exit(ExitCode.RANK_LOST)

    def _tell(self, lost: RankLost) -> None:
        """STATUS.json by rank 0, or in its place; with the code of the rank that left first."""
        told = lost.told if isinstance(lost, PeerLost) else None
        first = isinstance(lost, PeerLost) and lost.first
        if self.is_fit and (launch.launch_rank() == 0 or first):
            status.write_end(self.run_dir, lost.code if told is None else told, str(lost))

    def _written_by_first(self) -> tuple[int, str] | None:
        """Code and message that rank 0 wrote when it ended."""
        first, found = self.peers.others.get(0), status.read_status(self.run_dir)
        if first is None or found is None or found.code is None or not self.is_fit:
            return None
        by_first = (found.host, found.pid) == (first.host, first.pid)
        return (found.code, found.message) if by_first else None

    def _saved(self) -> str:
        folder = self.run_dir / "checkpoints"
        names = fs.list_dir(folder) if self.is_fit and fs.is_dir(folder) else []
        found = [samples_of(path) for path in names if STEP_FOLDER.fullmatch(path.name)]
        return f"saved up to {max(found)} samples" if found else "nothing saved yet"


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if hasattr(error, "code") else f"{type(error).__name__}: {text}"
