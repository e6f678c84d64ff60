"""The mean table: a pure function of the rows."""

from __future__ import annotations

import csv
import io
import math
import statistics
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field

from lit_restore.evaluation.methods import Method
from lit_restore.evaluation.perceptual.names import PERCEPTUAL
from lit_restore.evaluation.protocols import Column, Protocol
from lit_restore.evaluation.rows import Row
from lit_restore.evaluation.sources import listed

INFINITE = "identical to the truth"
"""Why an infinite PSNR has no place in a mean."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """One method at one noise level."""

    sigma: float
    method: str
    """Of its rows."""
    label: str
    """As printed: ``tv-chambolle (weight 0.08)``."""
    means: dict[str, float | None]
    """Column name → mean over the pictures (of each picture's mean over the seeds)."""
    measured: int
    """Pictures with a value in the first column."""
    total: int
    seconds: float | None
    """Median per picture."""
    nfe: float | None = None
    """Median evaluations per picture."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """Everything that is printed."""

    title: str
    protocol: Protocol
    lines: list[Line]
    notes: list[str]
    """Candidates that lost, blanks and failures with their reasons."""
    footer: list[str] = field(default_factory=list)
    """Protocol in words, run id, command."""


def make_table(
    protocol: Protocol,
    rows: Sequence[Row],
    methods: Sequence[Method],
    *,
    total: int,
    of: int | None = None,
    seeds: Sequence[int] = (0,),
    footer: Sequence[str] = (),
) -> Table:
    """Means, and which candidate of each family is the best.

    Args:
        protocol: names the columns; the first decides between candidates.
        rows: of all methods.
        methods: in the order of the table.
        total: pictures there should be.
        of: pictures there are in the data, if not all take part.
        seeds: of the noise.
        footer: lines below the protocol's words.
    """
    lines, notes = [], []
    for sigma in protocol.sigmas or (0.0,):
        candidates = [_line(protocol, rows, method, sigma, total) for method in methods]
        for family in dict.fromkeys(m.family or m.name for m in methods):
            group = [
                line
                for line, m in zip(candidates, methods, strict=True)
                if (m.family or m.name) == family
            ]
            first = protocol.columns[0]
            best = max(group, key=lambda line: _rank(line, first))
            lines.append(best)
            if len(group) > 1:
                notes.append(_contest(protocol, family, sigma, group, methods))
    notes += _blanks(rows) + _failures(rows)
    count = f"{total} pictures" if of in (None, total) else f"{total} of {of} pictures"
    drawn = f", noise seeds {', '.join(map(str, seeds))}" if protocol.sigmas else ""
    return Table(
        title=f"{protocol.name} v{protocol.version}, {count}{drawn}",
        protocol=protocol,
        lines=lines,
        notes=notes,
        footer=[*protocol.words, *footer],
    )


def _line(protocol: Protocol, rows: Sequence[Row], method: Method, sigma: float, n: int) -> Line:
    mine = [row for row in rows if row.method == method.name and row.sigma == sigma]
    label = f"{method.family} ({method.setting})" if method.family else method.name
    seconds = [row.seconds for row in mine if row.seconds is not None and row.error is None]
    evaluations = [row.nfe for row in mine if row.nfe is not None and row.error is None]
    first = protocol.columns[0].name
    return Line(
        sigma=sigma,
        method=method.name,
        label=label,
        means={column.name: _mean(mine, column.name) for column in protocol.columns},
        measured=len({row.key for row in mine if first in row.metrics}),
        total=n,
        seconds=statistics.median(seconds) if seconds else None,
        nfe=statistics.median(evaluations) if evaluations else None,
    )


def _mean(rows: Sequence[Row], column: str) -> float | None:
    by_key: dict[str, list[float]] = {}
    for row in rows:
        if column in row.metrics:
            by_key.setdefault(row.key, []).append(row.metrics[column])
    # fsum: the mean does not depend on the order of the rows.
    means = [math.fsum(values) / len(values) for values in by_key.values()]
    return math.fsum(means) / len(means) if means else None


def _rank(line: Line, column: Column) -> tuple[int, float]:
    mean = line.means[column.name]
    return (line.measured, -math.inf if mean is None else mean)


def _contest(
    protocol: Protocol, family: str, sigma: float, group: Sequence[Line], methods: Sequence[Method]
) -> str:
    column = protocol.columns[0]
    settings = {method.name: method.setting for method in methods}
    each = ", ".join(
        f"{settings[line.method].rpartition(' ')[2]}: {_number(line.means[column.name], column)}"
        for line in group
    )
    unit = settings[group[0].method].rpartition(" ")[0]
    at = f" at σ = {sigma:g}" if len(protocol.sigmas) > 1 else ""
    return f"{family}{at}, the best of its candidates by {column.title}; {unit} {each}"


def _blanks(rows: Sequence[Row]) -> list[str]:
    found: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        for column, why in row.blanks.items():
            found.setdefault((column, why), []).append(f"{row.key} ({row.method})")
    return [_blank(column, why, names, rows) for (column, why), names in sorted(found.items())]


def _blank(column: str, why: str, names: Sequence[str], rows: Sequence[Row]) -> str:
    if column in PERCEPTUAL and len(names) == sum(row.error is None for row in rows):
        return f"{column} is blank, {why}"
    return f"{column} left out for {len(names)} of {len(rows)} rows, {why}: {listed(names)}"


def _failures(rows: Sequence[Row]) -> list[str]:
    found: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if row.error is not None:
            found.setdefault((row.key, row.error), []).append(row.method)
    methods = {row.method for row in rows}
    return [
        f"failed: {key}"
        + ("" if set(names) == methods else f" ({listed(sorted(set(names)))})")
        + f": {why}"
        for (key, why), names in sorted(found.items())
    ]


# Three ways to write it ---------------------------------------------------------------------------


def plain_text(table: Table) -> str:
    """For a terminal: columns aligned, notes and protocol below."""
    head, body = _cells(table)
    widths = [max(len(row[i]) for row in [head, *body]) for i in range(len(head))]
    left = {i for i, title in enumerate(head) if title == "method"}
    lines = [
        "  ".join(
            c.ljust(w) if i in left else c.rjust(w) for i, (c, w) in enumerate(cells)
        ).rstrip()
        for cells in ([*zip(row, widths, strict=True)] for row in [head, *body])
    ]
    rule = "-" * max(map(len, lines))
    below = [*(_wrapped(f"* {note}") for note in table.notes), *map(_wrapped, table.footer)]
    return "\n".join([table.title, rule, lines[0], rule, *lines[1:], rule, *below]) + "\n"


def markdown(table: Table) -> str:
    """For a README."""
    head, body = _cells(table)
    align = ["---" if title == "method" else "---:" for title in head]
    lines = ["| " + " | ".join(_escaped(cell) for cell in row) + " |" for row in [head, *body]]
    lines.insert(1, "|" + "|".join(align) + "|")
    below = [f"- {_escaped(note)}" for note in [*table.notes, *table.footer]]
    return "\n".join([f"**{_escaped(table.title)}**", "", *lines, "", *below]) + "\n"


def comma_separated(table: Table) -> str:
    """For a spreadsheet: floats by `repr`, no notes."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    names = [column.name for column in table.protocol.columns]
    writer.writerow(["sigma", "method", *names, "n", "of", "nfe", "seconds"])
    for line in table.lines:
        numbers = [line.means[name] for name in names]
        cells = ["" if number is None else repr(number) for number in numbers]
        seconds = "" if line.seconds is None else repr(line.seconds)
        nfe = "" if line.nfe is None else f"{line.nfe:g}"
        counts = [line.measured, line.total, nfe, seconds]
        writer.writerow([repr(line.sigma), line.label, *cells, *counts])
    return out.getvalue()


def _cells(table: Table) -> tuple[list[str], list[list[str]]]:
    columns = table.protocol.columns
    levels = len(table.protocol.sigmas) > 0
    timed = any(line.seconds is not None for line in table.lines)
    # Of a denoiser it is always 1.
    counted = not levels and any(line.nfe is not None for line in table.lines)
    head = [*(["σ"] if levels else []), "method", *(c.title for c in columns)]
    head += ["NFE", "n"] if counted else ["n"]
    body = [
        [
            *([f"{line.sigma:g}"] if levels else []),
            line.label,
            *(_number(line.means[c.name], c) for c in columns),
            *([_evaluations(line.nfe)] if counted else []),
            str(line.total) if line.measured == line.total else f"{line.measured} of {line.total}",
            *([_seconds(line.seconds)] if timed else []),
        ]
        for line in table.lines
    ]
    return head + (["s/image"] if timed else []), body


def _wrapped(text: str) -> str:
    # Commands stay on one line, to be copied.
    return (
        text
        if text.startswith(("python ", "lit-restore "))
        else textwrap.fill(text, 100, subsequent_indent="  ")
    )


def _number(value: float | None, column: Column) -> str:
    return "–" if value is None else f"{value:.{column.digits}f}"


def _evaluations(value: float | None) -> str:
    return "–" if value is None else f"{value:g}"


def _seconds(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")
