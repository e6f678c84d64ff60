"""The other processes of a run: which of them died, and what they said before they left."""

from __future__ import annotations

import contextlib
import os
import re
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch.distributed
from torch.distributed import ProcessGroup, distributed_c10d

from lit_restore.errors import ExitCode, LitRestoreError, RankLost
from lit_restore.io import procs

T = TypeVar("T")

_LOST = re.compile(
    # gloo
    r"Connection (closed|reset) by peer|Timed out waiting \d+ms|timeout caused pair closure"
    r"|Broken pipe|Connection refused"
    # the store by which ranks find each other
    r"|wait timeout|waiting for clients|Failed to recv|client socket has|Socket Timeout"
    # NCCL
    r"|ncclRemoteError|remote process exited|Watchdog caught collective|communicator was aborted",
    re.IGNORECASE,
)
_ANSWER = 1.5
"""Seconds that the store may take."""
_PATIENCE = 3.0
_WELL = (ExitCode.OK, ExitCode.PREEMPTED, ExitCode.INTERRUPTED)
"""Seconds that a dying process may take to be gone."""


class PeerLost(RankLost):
    """Another rank died, stopped or left.

    Args:
        message: the error line.
        told: the code with which the first rank to leave said it would, where it said so: the
            cause, while this process only lost a connection.
        first: whether rank 0 is gone, which else writes STATUS.json.
    """

    def __init__(self, message: str, *, told: int | None = None, first: bool = False) -> None:
        super().__init__(message)
        self.told, self.first = told, first


def is_lost_connection(error: BaseException) -> bool:
    """Whether a collective failed because of another rank, and not of a mistake in the call."""
    text = str(error)
    from_worker = text.startswith("Caught ")  # an error of the data, raised anew by the loader
    return isinstance(error, RuntimeError) and not from_worker and bool(_LOST.search(text))


class Peers:
    """Who takes part in the run; a word of each rank that leaves is in the process group's store.

    Args:
        parent: the process that started this one and is rank 0, until all are known.
    """

    def __init__(self, parent: procs.Process | None = None) -> None:
        self.rank, self.world = 0, 1
        self.others: dict[int, procs.Process] = {} if parent is None else {0: parent}
        self._store: Any = None
        self._said = False

    def meet(self, group: ProcessGroup | None) -> None:
        """Learn host and pid of every rank; a collective call. Nothing with one process."""
        if group is None:
            return
        self.rank, self.world = torch.distributed.get_rank(), torch.distributed.get_world_size()
        found: list[Any] = [None] * self.world
        torch.distributed.all_gather_object(found, procs.this_process(), group=group)
        self.others = {rank: one for rank, one in enumerate(found) if rank != self.rank}

    def say(self, code: int, message: str) -> None:
        """Tell the others how this rank ends, once; best effort."""
        if self._said or not _joined() or self._keeper_gone():
            return
        self._said = True
        key, text = f"lit_restore/end/{torch.distributed.get_rank()}", f"{code} {message}"
        _shortly(lambda: _store().set(key, text), None)

    def heard(self) -> dict[int, tuple[int, str]]:
        """Rank → exit code and message, of the ranks that said so."""
        if not _joined() or self._keeper_gone():
            return {}
        me, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
        found: dict[int, tuple[int, str]] = {}

        def ask() -> dict[int, tuple[int, str]]:
            store = _store()
            for rank in range(world):
                key = f"lit_restore/end/{rank}"
                if rank != me and store.check([key]):
                    code, _, message = store.get(key).decode(errors="replace").partition(" ")
                    found[rank] = int(code), message
            return found

        return _shortly(ask, found)

    def _keeper_gone(self) -> bool:
        """Whether the process that keeps the store, rank 0 or torchrun, would not answer."""
        by_torchrun = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        return not by_torchrun and self.states().get(0) in ("gone", "stopped")

    def states(self) -> dict[int, procs.State | None]:
        """What the ranks of this machine are doing."""
        return {rank: procs.state_of(one) for rank, one in self.others.items()}

    def loss(self, saved: str, written: Callable[[], tuple[int, str] | None]) -> PeerLost:
        """The error of a rank that others have left; waits a moment for a dying one to be gone.

        Args:
            saved: up to where the run is saved, for the line.
            written: code and message that rank 0 left in STATUS.json: the store dies with it.
        """
        heard = self.heard()
        for _ in _until(_PATIENCE):
            states = self.states()
            if states.get(0) == "gone" and (word := written()) is not None:
                heard[0] = word
            causes = {r: said for r, said in heard.items() if said[0] != ExitCode.RANK_LOST}
            if causes:
                rank, (code, message) = min(causes.items())
                line = f"{self._name(rank)} ended: {message}"
                return PeerLost(f"{line}; {saved}", told=code)
            # One that says it has lost another is a follower, not the cause.
            dead = [r for r, state in states.items() if state == "gone" and r not in heard]
            if dead:
                line = f"{self._name(min(dead))} died"
                return PeerLost(f"{line}; {saved}, start again", first=0 in dead)
            stopped = [r for r, state in states.items() if state == "stopped"]
            if stopped:
                line = f"{self._name(min(stopped))} is stopped and did not answer in time"
                return PeerLost(f"{line}; {saved}, start again", first=0 in stopped)
            if heard:
                break
        for _, message in heard.values():
            return PeerLost(message)
        return PeerLost(f"lost the connection to another rank; {saved}, start again")

    def dead(self) -> bool:
        """Whether a rank of this machine is gone that did not end well."""
        gone = [rank for rank, state in self.states().items() if state == "gone"]
        if not gone:
            return False
        heard = self.heard()
        return any(rank not in heard or heard[rank][0] not in _WELL for rank in gone)

    def failed(self) -> bool:
        """Whether a rank said that it ends with an error."""
        return any(code not in _WELL for code, _ in self.heard().values())

    def _name(self, rank: int) -> str:
        one = self.others.get(rank)
        if one is None:
            return f"rank {rank}"
        there = "" if procs.state_of(one) is not None else f" on {one.host}"
        return f"rank {rank} (pid {one.pid}{there})"


def code_of(error: BaseException) -> int:
    """The exit code an exception leads to."""
    if isinstance(error, KeyboardInterrupt):
        return ExitCode.INTERRUPTED
    return error.code if isinstance(error, LitRestoreError) else ExitCode.BUG


def _joined() -> bool:
    available = torch.distributed.is_available() and torch.distributed.is_initialized()
    return available and torch.distributed.get_world_size() > 1


def _store() -> Any:
    """A connection of its own to the store: another thread may wait on the usual one."""
    store = distributed_c10d._get_default_store()
    return store.clone() if hasattr(store, "clone") else store


def _shortly(ask: Callable[[], T], otherwise: T) -> T:
    """What `ask` gives within `_ANSWER`: a store whose keeper is gone may never answer."""
    answers: list[T] = []

    def run() -> None:
        with contextlib.suppress(Exception):
            answers.append(ask())

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(_ANSWER)
    return answers[0] if answers else otherwise


def _until(seconds: float) -> Iterator[None]:
    waiting = threading.Event()
    for _ in range(round(seconds / 0.1)):
        yield
        waiting.wait(0.1)
