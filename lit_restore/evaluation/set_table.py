"""The table of distances between sets: every number below a head that says what it is."""

from __future__ import annotations

import csv
import io
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from lit_restore.evaluation.distribution import SetMetric
from lit_restore.evaluation.features import FeatureNetwork, FIDInception

_HEAD_WIDTH = 16
_WIDTH = 100


@dataclass(frozen=True, kw_only=True)
class SetLine:
    """One set against the real one."""

    name: str
    real: int
    """Real pictures measured."""
    of_real: int
    """Real pictures there are."""
    fake: int
    of_fake: int
    values: dict[str, float]
    """Metric → value; ``kid_sd`` beside ``kid``."""
    blanks: dict[str, str]
    """Metric → why it has no value."""


@dataclass(frozen=True, kw_only=True)
class SetTable:
    """Everything that is printed."""

    network: FeatureNetwork
    metrics: tuple[SetMetric, ...]
    lines: tuple[SetLine, ...]
    notes: tuple[str, ...]
    footer: tuple[str, ...]

    def titles(self, line: SetLine) -> dict[str, str]:
        """Metric → the head that this row's number stands below."""
        count = min(line.real, line.fake)
        return {metric: self.network.title(metric, count) for metric in self.metrics}

    @property
    def columns(self) -> list[tuple[str, str]]:
        """(metric, head). One a metric, but one a name where names depend on N: FID, FID@5000."""
        found: list[tuple[str, str]] = [
            (metric, title)
            for metric in self.metrics
            for title in dict.fromkeys(self.titles(line)[metric] for line in self.lines)
        ]
        fid = isinstance(self.network, FIDInception)
        assert fid or not any("fid" in title.lower() for _, title in found), found
        return found

    def value(self, line: SetLine, column: tuple[str, str], name: str = "") -> float | None:
        """What stands in a column: the metric, or the other value `name` of it."""
        metric, title = column
        shown = self.titles(line)[metric] == title
        return line.values.get(name or metric) if shown else None


def make_table(
    network: FeatureNetwork,
    metrics: Sequence[SetMetric],
    lines: Sequence[SetLine],
    *,
    notes: Sequence[str] = (),
    footer: Sequence[str] = (),
) -> SetTable:
    """The table, with the reasons for blanks among its notes.

    Args:
        network: names the columns.
        metrics: the columns.
        lines: a row each.
        notes: below the table.
        footer: below the notes: protocol in words, run id, command.
    """
    reasons = [f"{metric} of {li.name}: {why}" for li in lines for metric, why in li.blanks.items()]
    return SetTable(
        network=network,
        metrics=tuple(metrics),
        lines=tuple(lines),
        notes=(*notes, *reasons),
        footer=tuple(footer),
    )


def plain_text(table: SetTable) -> str:
    """For a terminal: heads broken over lines, columns aligned, the rest below."""
    head, body = _cells(table)
    broken = [_broken(title) for title in head]
    tall = max(map(len, broken))
    heads = [[(column + [""] * tall)[k] for column in broken] for k in range(tall)]
    widths = [max(len(row[k]) for row in [*heads, *body]) for k in range(len(head))]
    rows = [
        "  ".join(
            cell.rjust(width) if k else cell.ljust(width)
            for k, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in [*heads, *body]
    ]
    rule = "-" * max(map(len, rows))
    below = [*(_wrapped(f"* {note}") for note in table.notes), *map(_wrapped, table.footer)]
    return "\n".join([rule, *rows[:tall], rule, *rows[tall:], rule, *below]) + "\n"


def markdown(table: SetTable) -> str:
    """For a README."""
    head, body = _cells(table)
    lines = ["| " + " | ".join(map(_escaped, row)) + " |" for row in [head, *body]]
    lines.insert(1, "|" + "|".join(["---", *["---:"] * (len(head) - 1)]) + "|")
    below = [f"- {_escaped(note)}" for note in (*table.notes, *table.footer)]
    return "\n".join([*lines, "", *below]) + "\n"


def comma_separated(table: SetTable) -> str:
    """For a spreadsheet: floats by `repr`, no notes; sd of the subsets behind KID."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    columns = [
        (column, name, column[1] + extra)
        for column in table.columns
        for name, extra in ((column[0], ""), ("kid_sd", " sd"))[: 2 if column[0] == "kid" else 1]
    ]
    sides = ["N real", "of", "N fake", "of"]
    writer.writerow(["set", *(title for _, _, title in columns), *sides])
    for line in table.lines:
        values = [table.value(line, column, name) for column, name, _ in columns]
        cells = ["" if value is None else repr(value) for value in values]
        writer.writerow([line.name, *cells, line.real, line.of_real, line.fake, line.of_fake])
    return out.getvalue()


def _cells(table: SetTable) -> tuple[list[str], list[list[str]]]:
    columns = table.columns
    head = ["set", *(title for _, title in columns), "N real", "N fake"]
    body = [
        [
            line.name,
            *(_shown(table, line, column) for column in columns),
            _of(line.real, line.of_real),
            _of(line.fake, line.of_fake),
        ]
        for line in table.lines
    ]
    return head, body


def _shown(table: SetTable, line: SetLine, column: tuple[str, str]) -> str:
    value = table.value(line, column)
    if value is None:
        return "–"
    if column[0] not in ("fd", "fd_infinity", "kid"):
        return f"{value:.3f}"
    sd = line.values.get("kid_sd") if column[0] == "kid" else None
    return _number(value) + ("" if sd is None else f" ± {sd:.2g}")


def _number(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _of(count: int, size: int) -> str:
    return str(count) if count == size else f"{count} of {size}"


def _broken(title: str) -> list[str]:
    name, bracket, rest = title.partition("[")
    return [name, *textwrap.wrap(bracket + rest, _HEAD_WIDTH)]


def _wrapped(text: str) -> str:
    # Commands stay on one line, to be copied.
    plain = text.startswith("python ")
    return text if plain else textwrap.fill(text, _WIDTH, subsequent_indent="  ")


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")
