"""metrics.jsonl, the truth about a run, keyed by samples_seen; W&B is its mirror."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import Any, Protocol

from lit_restore.errors import SaveError
from lit_restore.io import failpoints, fs

_log = logging.getLogger(__name__)

TIMING = ("seconds", "images_per_second", "data_wait", "mfu", "memory_gb", "skew")
"""Fields that depend on the clock or the machine, and so differ between equal runs."""


class Mirror(Protocol):
    """Something that is told every record and picture, and may be absent."""

    def metrics(self, samples_seen: int, values: dict[str, float]) -> None:
        """Take the scalars of one record."""

    def picture(self, samples_seen: int, name: str, path: Path) -> None:
        """Take one picture."""

    def start(self) -> None:
        """The run begins: nothing was wrong with its input."""

    def close(self) -> None:
        """The run ends."""


class Records:
    """Append-only records of one run: {"samples_seen": …, "kind": …, name: value …}.

    Args:
        path: the JSON-lines file.
        mirror: told of every record, or None.
        writes: whether this process writes (rank 0).
    """

    def __init__(self, path: Path, *, mirror: Mirror | None = None, writes: bool = True) -> None:
        self.path = path
        self.mirror = mirror
        self.writes = writes

    def start(self) -> None:
        """Begin the mirror."""
        if self.writes and self.mirror is not None:
            self.mirror.start()

    def write(self, kind: str, samples_seen: int, values: dict[str, float]) -> None:
        """Append one record; numbers that are not finite are written as null."""
        if not self.writes:
            return
        finite = {name: v if math.isfinite(v) else None for name, v in values.items()}
        self.append({"samples_seen": samples_seen, "kind": kind, **finite})
        if self.mirror is not None:
            prefixed = {f"{kind}/{name}": v for name, v in values.items() if math.isfinite(v)}
            self.mirror.metrics(samples_seen, prefixed)

    def append(self, row: dict[str, Any]) -> None:
        """Append one line; it has `samples_seen`."""
        if not self.writes:
            return
        try:
            failpoints.hit("record.append")
            fs.append(self.path, (json.dumps(row) + "\n").encode())
        except OSError as error:  # a full disk ends no training; the saves decide that
            _log.warning("%s: a record is lost (%s)", self.path, error.strerror)

    def picture(self, samples_seen: int, name: str, path: Path) -> None:
        """Tell the mirror of a picture that is on disk."""
        if self.writes and self.mirror is not None:
            self.mirror.picture(samples_seen, name, path)

    def cut_back(self, samples_seen: int, *, without: str | None = None) -> None:
        """Drop, in one replacement of the file, what came after `samples_seen`.

        A line that a crash cut short goes too.

        Args:
            samples_seen: the last position that stays.
            without: a kind whose record at `samples_seen` itself goes too: it will be made again.

        Raises:
            SaveError: the file cannot be replaced.
        """
        if not self.writes or not fs.exists(self.path):
            return
        lines = fs.read_text(self.path).splitlines(keepends=True)
        kept = [line for line in lines if _stays(line, samples_seen, without)]
        if kept == lines:
            return
        try:
            fs.write_atomic(self.path, "".join(kept))
        except OSError as error:
            raise SaveError(f"{self.path}: {error.strerror}; free some space") from None

    def close(self) -> None:
        """End the mirror."""
        if self.mirror is not None:
            self.mirror.close()


def _stays(line: str, last: int, without: str | None) -> bool:
    try:
        row = json.loads(line)
        position = int(row["samples_seen"])
    except (ValueError, KeyError, TypeError):
        return False
    return position < last or (position == last and (not without or row.get("kind") != without))
