"""The times in a results file of selective_scan.py or selective_scan_gpu.py as bars, as SVG.

    python benchmarks/plot_scan.py benchmarks/results/selective_scan.json docs/selective_scan.svg

The scale is logarithmic; a floor, where the file has one, is a line across its bars.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

WIDTH, LEFT, BAR, GAP = 720, 220, 18, 26
COLOURS = ("#9aa5b1", "#c48a3f", "#3f7fc4", "#4a9c6d", "#8a5fb0", "#b05f6f")


def groups(result: dict[str, Any]) -> list[tuple[str, dict[str, float], float]]:
    """Title, milliseconds by way, and floor (0 for none) of each group of bars."""
    if "times" in result:
        shape = result["shape"]
        about = f"batch {shape['batch']}, D {shape['D']}, L {shape['L']}, {shape['dtype']}"
        return [
            (
                f"{what.replace('_', ' and ')}: {about}",
                {n: t["median_ms"] for n, t in ways.items()},
                0.0,
            )
            for what, ways in result["times"].items()
        ]
    found = []
    for row in result["rows"]:
        about = f"batch {row['batch']}, {row['G']} x D {row['D']}, L {row['L']}, {row['dtype']}"
        for what in ("forward", "forward_backward"):
            floor = max(v for k, v in row["floors"].items() if k.endswith(f"{what}_ms"))
            times = {name: way[what]["median_ms"] for name, way in row["ways"].items()}
            found.append((f"{what.replace('_', ' and ')}: {about}", times, floor))
    return found


def draw(result: dict[str, Any]) -> str:
    """The whole picture."""
    parts = groups(result)
    shown = [ms for _, times, floor in parts for ms in (*times.values(), floor) if ms > 0]
    low, high = math.floor(math.log10(min(shown))), math.log10(max(shown))
    scale = (WIDTH - LEFT - 90) / max(high - low, 1e-9)

    def place(ms: float) -> float:
        return LEFT + max(1.0, (math.log10(ms) - low) * scale)

    lines, y = [], 24
    for title, times, floor in parts:
        lines.append(f'<text x="8" y="{y}" font-weight="bold">{escape(title)}</text>')
        y += 10
        top = y
        for k, (name, ms) in enumerate(times.items()):
            colour = COLOURS[k % len(COLOURS)]
            value = f"{ms:,.0f} ms" if ms >= 100 else f"{ms:.2f} ms"
            lines += [
                f'<text x="{LEFT - 8}" y="{y + 14}" text-anchor="end">{escape(name)}</text>',
                f'<rect x="{LEFT}" y="{y}" width="{place(ms) - LEFT:.1f}" height="{BAR}" '
                f'fill="{colour}"/>',
                f'<text x="{place(ms) + 6:.1f}" y="{y + 14}">{value}</text>',
            ]
            y += BAR + 4
        if floor:
            at = place(floor)
            lines.append(f'<path d="M{at:.1f} {top - 2}V{y}" stroke="#c03030" fill="none"/>')
        y += GAP
    y += 4
    note = f"median, logarithmic scale. {result['machine']}"
    lines.append(f'<text x="8" y="{y}" fill="#555">{escape(note)}</text>')
    body = "\n".join(lines)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y + 14}" '
        f'font-family="sans-serif" font-size="12">\n<rect width="100%" height="100%" '
        f'fill="white"/>\n{body}\n</svg>\n'
    )


def main() -> None:
    """Read, draw, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("results", type=Path)
    parser.add_argument("picture", type=Path)
    options = parser.parse_args()
    options.picture.write_text(draw(json.loads(options.results.read_text())), encoding="utf-8")


if __name__ == "__main__":
    main()
