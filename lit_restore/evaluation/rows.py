"""One row per picture, method, seed and noise level; written in parts that survive a kill.

```
RUN/rows/part-RANK-SEQ.jsonl    at most 64 rows or 30 s, each file whole or not there at all
RUN/rows.csv                    all of them, sorted
```
Whatever a row refers to (its PNG) is on the disk before the row is. Everything else (tables,
pictures) is a function of the rows. Only the columns of `TIMING` depend on the clock.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TypeAlias

from lit_restore.errors import UserError
from lit_restore.io import fs

TIMING = ("seconds",)
"""Columns that another run of the same evaluation may fill differently."""

FOLDER, CSV = "rows", "rows.csv"
_ROWS, _SECONDS = 64, 30.0
_LONGEST_REASON = 200
_PART = re.compile(r"part-(\d{4})-(\d{6})\.jsonl")

RowId: TypeAlias = tuple[str, str, int, float]


@dataclass(frozen=True, kw_only=True)
class Row:
    """What came of one picture under one method."""

    key: str
    method: str
    seed: int = 0
    """Of the noise; 0 where none is drawn."""
    sigma: float = 0.0
    """Noise in units of 8-bit levels; 0 where none is added."""
    width: int | None = None
    height: int | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    """Column name → value, always finite."""
    blanks: dict[str, str] = field(default_factory=dict)
    """Column name → why it has no value."""
    error: str | None = None
    """Why the picture failed; it has no metrics then."""
    nfe: int | None = None
    """Evaluations of the network."""
    png: str | None = None
    """The measured file, relative to the run folder."""
    sha256: str | None = None
    """Of that file."""
    seconds: float | None = None
    """Spent in the method, without reading and writing."""

    @property
    def id(self) -> RowId:
        """What there is one row of; rows sort by it."""
        return (self.key, self.method, self.seed, self.sigma)

    def untimed(self) -> Row:
        """The row without what the clock said."""
        return dataclasses.replace(self, seconds=None)


class RowWriter:
    """Streams rows into parts; as a context manager it writes what is left, also after an error.

    Args:
        run: the run folder.
        rank: of this process among those that write to the folder.
    """

    def __init__(self, run: Path, rank: int = 0) -> None:
        self.folder = run / FOLDER
        self.rank = rank
        fs.make_dir(self.folder)
        taken = (_PART.fullmatch(path.name) for path in fs.list_dir(self.folder))
        numbers = [int(match[2]) for match in taken if match and int(match[1]) == rank]
        self._next = max(numbers, default=-1) + 1
        self._rows: list[Row] = []
        self._since = time.monotonic()

    def add(self, row: Row) -> None:
        """Take a row; every so often this writes a part."""
        self._rows.append(row)
        if len(self._rows) >= _ROWS or time.monotonic() - self._since > _SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write the rows taken so far."""
        if self._rows:
            lines = [json.dumps(dataclasses.asdict(row), ensure_ascii=False) for row in self._rows]
            name = f"part-{self.rank:04d}-{self._next:06d}.jsonl"
            fs.write_atomic(self.folder / name, "\n".join(lines) + "\n")
            self._rows, self._next = [], self._next + 1
        self._since = time.monotonic()

    def __enter__(self) -> RowWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self.flush()


def read_rows(run: Path) -> list[Row]:
    """All rows of a run, sorted.

    Raises:
        UserError: a part is damaged, or two of them disagree about a row.
    """
    if not fs.is_dir(run / FOLDER):
        return []
    rows: dict[RowId, Row] = {}
    for path in fs.list_dir(run / FOLDER):
        if _PART.fullmatch(path.name) is None:
            continue
        for row in _parse(fs.read_text(path), path):
            first = rows.setdefault(row.id, row)
            if first.untimed() != row.untimed():
                raise UserError(
                    f"has another row for {row.id} than an earlier part; choose another --out",
                    where=path,
                )
    return [rows[identity] for identity in sorted(rows)]


def _parse(text: str, path: Path) -> Iterable[Row]:
    for number, line in enumerate(text.splitlines(), 1):
        try:
            yield Row(**json.loads(line))
        except (ValueError, TypeError):
            raise UserError(f"line {number} is no row; was it edited?", where=path) from None


def csv_text(rows: Sequence[Row], columns: Sequence[str], *, timing: bool = True) -> str:
    """Rows as CSV: floats by `repr`, blanks and errors in words, timing columns last.

    Args:
        rows: sorted already.
        columns: names of the metrics, in order.
        timing: with the columns of `TIMING`.
    """
    out = io.StringIO()
    table = csv.writer(out, lineterminator="\n")
    plain = ("key", "method", "seed", "sigma", "width", "height")
    last = ("nfe", "png", "sha256", *(TIMING if timing else ()))
    table.writerow([*plain, *columns, "blanks", "error", *last])
    for row in rows:
        blanks = "; ".join(f"{name}: {why}" for name, why in sorted(row.blanks.items()))
        table.writerow(
            [_cell(getattr(row, name)) for name in plain]
            + [_cell(row.metrics.get(name)) for name in columns]
            + [blanks, _cell(row.error)]
            + [_cell(getattr(row, name)) for name in last]
        )
    return out.getvalue()


def _cell(value: str | float | None) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else repr(value)


def intact(run: Path, row: Row) -> bool:
    """Whether a row still stands: it failed, or its PNG is the one that was measured."""
    if row.png is None:
        return True
    path = run / row.png
    return fs.exists(path) and fs.sha256(path) == row.sha256


def reason_of(error: BaseException) -> str:
    """Why a row failed, in one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= _LONGEST_REASON else text[: _LONGEST_REASON - 1] + "…"
