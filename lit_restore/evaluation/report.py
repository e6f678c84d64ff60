"""What an evaluation leaves behind: rows.csv, tables and pictures, all made from the rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lit_restore.evaluation.methods import Method
from lit_restore.evaluation.pictures import Crop, Panel, interesting_crop, overview, side_by_side
from lit_restore.evaluation.protocols import Protocol
from lit_restore.evaluation.rows import CSV, Row, csv_text
from lit_restore.evaluation.table import (
    Table,
    comma_separated,
    make_table,
    markdown,
    plain_text,
)
from lit_restore.io import fs, images
from lit_restore.io.quantise import Pixels

_OVERVIEW = 3


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How an evaluation ended."""

    out: Path
    table: Table
    failed: dict[str, str]
    """Key → reason, of pictures with a failed row."""
    drawn: int
    """Pictures that were drawn side by side."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """Writes it."""

    out: Path
    protocol: Protocol
    methods: Sequence[Method]
    seeds: Sequence[int]
    total: int
    """Pictures that take part."""
    of: int | None = None
    """Pictures there are, if more."""
    run_id: str
    command: str
    pictures: int
    """The most pictures to draw."""
    clean: Callable[[str], Pixels | None]
    """Key → the clean picture in 8 bits; None if it cannot be read."""
    output: Callable[[Row], Pixels]
    """What was measured."""
    about: Sequence[str] = ()
    """Lines below the table: parameters and cost of the methods."""

    def write(self, rows: Sequence[Row]) -> Outcome:
        """All files, from all rows."""
        columns = [column.name for column in self.protocol.columns]
        fs.write_atomic(self.out / CSV, csv_text(rows, columns))
        table = self._table(rows)
        fs.write_atomic(self.out / "table.txt", plain_text(table))
        fs.write_atomic(self.out / "table.md", markdown(table))
        fs.write_atomic(self.out / "table.csv", comma_separated(table))
        failed = {row.key: row.error for row in reversed(rows) if row.error is not None}
        return Outcome(out=self.out, table=table, failed=failed, drawn=self._draw(rows, table))

    def _table(self, rows: Sequence[Row]) -> Table:
        return make_table(
            self.protocol,
            rows,
            self.methods,
            total=self.total,
            of=self.of,
            seeds=self.seeds,
            footer=[*self.about, f"run {self.run_id}", self.command],
        )

    def _draw(self, rows: Sequence[Row], table: Table) -> int:
        by_id = {row.id: row for row in rows}
        levels = self.protocol.sigmas or (0.0,)
        middle = sorted(levels)[len(levels) // 2]
        first: list[tuple[list[Panel], Crop]] = []
        keys = sorted({row.key for row in rows if row.error is None})[: self.pictures]
        for key in keys:
            clean = self.clean(key)
            if clean is None:
                continue
            crop = interesting_crop(clean)
            for sigma in levels:
                panels = [Panel(pixels=clean, name="clean", number=key.rpartition("/")[2])]
                panels += self._panels(by_id, table, key, sigma)
                path = self.out / "pictures" / self._level(sigma) / f"{key}.png"
                fs.make_dir(path.parent)
                images.write_png(path, side_by_side(panels, crop, title=self._title(sigma, key)))
                if sigma == middle and len(first) < _OVERVIEW:
                    first.append((panels, crop))
        if first:
            images.write_png(
                self.out / "overview.png", overview(first, title=self._title(middle, ""))
            )
        return len(keys)

    def _panels(
        self, by_id: dict[tuple[str, str, int, float], Row], table: Table, key: str, sigma: float
    ) -> list[Panel]:
        panels = []
        methods = {method.name: method for method in self.methods}
        column = self.protocol.columns[0]
        for line in table.lines:
            row = by_id.get((key, line.method, self.seeds[0], line.sigma))
            if line.sigma != sigma or row is None or row.error is not None:
                continue
            method, value = methods[line.method], row.metrics.get(column.name)
            number = row.blanks.get(column.name, "") if value is None else f"{value:.2f} dB"
            number += f", {method.setting}" if method.setting else ""
            name = method.family or method.name
            panels.append(Panel(pixels=self.output(row), name=name, number=number))
        return panels

    def _level(self, sigma: float) -> str:
        return f"sigma{sigma:g}" if len(self.protocol.sigmas) > 1 else ""

    def _title(self, sigma: float, key: str) -> str:
        column = self.protocol.columns[0].title
        noise = f", σ = {sigma:g}/255" if self.protocol.sigmas else ""
        name = f"{key}:  " if key else ""
        return f"{name}{self.protocol.name} v{self.protocol.version}{noise}, {column} in dB"
