"""One save by all ranks: each writes its part, all vote, rank 0 publishes; at once or behind."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lit_restore.callbacks.retention import Retention
from lit_restore.errors import UserError
from lit_restore.io import folder, fs
from lit_restore.parallel.control import Control
from lit_restore.weights.checkpoint import (
    STEP_FOLDER,
    Part,
    publish,
    read_state,
    write_part,
)
from lit_restore.weights.pieces import snapshot

_log = logging.getLogger(__name__)

_HASHED_EVERY = 10
_LEAVE_SECONDS = 60.0


@dataclass
class Outcome:
    """How a save ended, the same on all ranks."""

    target: Path
    error: str | None
    """What went wrong, or None."""


class Saver:
    """Writes checkpoints for all ranks; at most one behind the training's back.

    Args:
        folder_: where the checkpoints go.
        retention: what is dropped after a save.
        published: called on rank 0 with each acknowledged checkpoint.
    """

    def __init__(
        self, folder_: Path, retention: Retention, published: Callable[[Path], None]
    ) -> None:
        self.folder = folder_
        self.retention = retention
        self.published = published
        self.control = Control()
        self._last_size = 0
        self._saves = 0
        self._behind: _Behind | None = None

    def save(self, target: Path, part: Part, state: Mapping[str, Any], *, verify: bool) -> Outcome:
        """Write a checkpoint now; a collective call. Whatever was behind must be settled.

        Args:
            target: the folder to publish.
            part: what this rank writes.
            state: what state.json holds; rank 0's counts.
            verify: read all of it again and compare the hashes (else every tenth time).
        """
        assert self._behind is None
        return Outcome(target, self._write(target, part, state, verify))

    def save_behind(self, target: Path, part: Part, state: Mapping[str, Any]) -> None:
        """Copy the part to the CPU and write it while training goes on; a collective call."""
        assert self._behind is None
        part = Part(part.rank, part.sharded, {k: snapshot(v) for k, v in part.groups.items()})
        self._behind = _Behind(target, lambda: self._write(target, part, state, verify=False))

    def settle(self) -> Outcome | None:
        """Wait for the save that is behind, if any; the same on all ranks.

        Raises:
            RuntimeError: another rank is gone.
        """
        if self._behind is None:
            return None
        behind = self._behind
        behind.wait()  # a signal's exception may leave from here: `close` waits again
        self._behind = None
        return Outcome(behind.target, behind.result())

    def close(self) -> None:
        """Let the save that is behind come to its end, where the run ended in a fault meanwhile."""
        if self._behind is not None:
            self._behind.wait(_LEAVE_SECONDS)
        self.published = lambda target: None  # a late one does not overwrite how the run ended

    # --- on the thread that writes --------------------------------------------------------------

    def _write(
        self, target: Path, part: Part, state: Mapping[str, Any], verify: bool
    ) -> str | None:
        begun = self.control.from_first(self._begin(target) if self.control.rank == 0 else None)
        if isinstance(begun, str):
            return begun
        draft = folder.Draft(target, begun)
        rows, error = [], None
        try:
            rows = write_part(draft, part)
        except OSError as failure:
            error = failure.strerror or str(failure)
        votes = self.control.gather((draft.entries, rows, error))
        failed = [vote[2] for vote in votes if vote[2] is not None]
        if self.control.rank == 0 and not failed:
            others = [entry for entries, _, _ in votes[1:] for entry in entries]
            every = [row for _, rows, _ in votes for row in rows]
            try:
                manifest = publish(draft, state, others, every, sharded=part.sharded)
            except OSError as failure:
                failed = [failure.strerror or str(failure)]
            else:
                self._after(target, manifest, verify)
        if self.control.rank == 0 and failed:
            draft.abandon()
        error = self.control.from_first(failed[0] if failed else None)
        return None if error is None else str(error)

    def _begin(self, target: Path) -> Path | str:
        """The draft's folder, or what forbids the save."""
        needed = int(1.1 * self._last_size)
        try:
            free = fs.free_bytes(self.folder)
            if free < needed:
                return f"{needed} bytes needed, {free} free"
            return folder.Draft.begin(target).folder
        except OSError as failure:
            return failure.strerror or str(failure)

    def _after(self, target: Path, manifest: folder.Manifest, verify: bool) -> None:
        self._last_size = sum(entry.size for entry in manifest.files)
        self._saves += 1
        self.published(target)
        try:
            folder.verify(target, hashes=verify or self._saves % _HASHED_EVERY == 0)
            self._drop_surplus(target)
        except (OSError, UserError) as error:
            _log.warning("after the save of %s: %s", target.name, error)

    def _drop_surplus(self, saved: Path) -> None:
        """Drop what retention does not keep; the one just saved is the newest."""
        complete = folder.complete(self.folder, STEP_FOLDER)
        scores = {p: read_state(p)["score"] for p in complete if p.name <= saved.name}
        for path in self.retention.surplus(scores):
            folder.discard(path)


class _Behind:
    """A save on a thread of its own."""

    def __init__(self, target: Path, write: Callable[[], str | None]) -> None:
        self.target = target
        self._write = write
        self._error: str | None = None
        self._fault: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True, name="checkpoint")
        self._thread.start()

    def _run(self) -> None:
        try:
            self._error = self._write()
        except BaseException as fault:  # told where the training waits for it
            self._fault = fault

    def wait(self, seconds: float | None = None) -> None:
        self._thread.join(seconds)

    def result(self) -> str | None:
        if self._fault is not None:
            raise self._fault
        return self._error
