"""metrics.jsonl, the truth about a run, keyed by samples_seen; W&B is its mirror."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import Any, Protocol

from lit_restore.io import fs

_log = logging.getLogger(__name__)

TIMING = ("seconds", "images_per_second", "data_wait")
"""Fields that differ between equal runs: outside bit-equality."""


class Mirror(Protocol):
    """Something that is told every record and picture, and may be absent."""

    def metrics(self, samples_seen: int, values: dict[str, float]) -> None:
        """Take the scalars of one record."""

    def picture(self, samples_seen: int, name: str, path: Path) -> None:
        """Take one picture."""

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
            fs.append(self.path, (json.dumps(row) + "\n").encode())
        except OSError as error:  # a full disk ends no training; the saves decide that
            _log.warning("%s: a record is lost (%s)", self.path, error.strerror)

    def picture(self, samples_seen: int, name: str, path: Path) -> None:
        """Tell the mirror of a picture that is on disk."""
        if self.writes and self.mirror is not None:
            self.mirror.picture(samples_seen, name, path)

    def cut_back(self, samples_seen: int) -> None:
        """Drop, in one replacement of the file, what came after `samples_seen`.

        A line that a crash cut short goes too.
        """
        if not self.writes or not fs.exists(self.path):
            return
        lines = fs.read_text(self.path).splitlines(keepends=True)
        kept = [line for line in lines if _position(line) <= samples_seen]
        if kept != lines:
            fs.write_atomic(self.path, "".join(kept))

    def close(self) -> None:
        """End the mirror."""
        if self.mirror is not None:
            self.mirror.close()


def _position(line: str) -> float:
    try:
        return int(json.loads(line)["samples_seen"])
    except (ValueError, KeyError, TypeError):
        return math.inf
