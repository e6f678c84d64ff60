"""The perception-distortion curve: what tau costs in one measure and buys in another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from lit_restore.io.quantise import Pixels

_WIDTH, _HEIGHT = 900, 640
_LEFT, _RIGHT, _TOP, _BOTTOM = 110, 60, 60, 90
_INK, _GREY, _LINE, _DOT = (20, 20, 20), (205, 205, 205), (63, 127, 196), (196, 80, 50)


@dataclass(frozen=True, kw_only=True)
class Point:
    """One setting."""

    label: str
    x: float
    y: float


def curve(points: Sequence[Point], *, x: str, y: str, title: str) -> Pixels:
    """Points in their order, joined by a line.

    Args:
        points: at least one.
        x: name of the horizontal axis.
        y: of the vertical one.
        title: above everything.

    Returns:
        (640, 900, 3).
    """
    sheet = Image.new("RGB", (_WIDTH, _HEIGHT), (255, 255, 255))
    draw = ImageDraw.Draw(sheet)
    across = _Axis([p.x for p in points], _LEFT, _WIDTH - _RIGHT)
    up = _Axis([p.y for p in points], _HEIGHT - _BOTTOM, _TOP)
    small, large = ImageFont.load_default(18), ImageFont.load_default(20)
    for value in across.ticks():
        at = across.place(value)
        draw.line([(at, _TOP), (at, _HEIGHT - _BOTTOM)], fill=_GREY)
        draw.text((at, _HEIGHT - _BOTTOM + 8), _told(value), fill=_INK, font=small, anchor="ma")
    for value in up.ticks():
        at = up.place(value)
        draw.line([(_LEFT, at), (_WIDTH - _RIGHT, at)], fill=_GREY)
        draw.text((_LEFT - 8, at), _told(value), fill=_INK, font=small, anchor="rm")
    places = [(across.place(p.x), up.place(p.y)) for p in points]
    if len(places) > 1:
        draw.line(places, fill=_LINE, width=3)
    for (left, top), point in zip(places, points, strict=True):
        draw.ellipse((left - 5, top - 5, left + 5, top + 5), fill=_DOT)
        draw.text((left + 8, top - 8), point.label, fill=_INK, font=small, anchor="ls")
    draw.text((8, 6), title, fill=_INK, font=large)
    draw.text((_WIDTH - _RIGHT, _HEIGHT - 34), x, fill=_INK, font=large, anchor="ra")
    draw.text((8, _TOP - 28), y, fill=_INK, font=large)
    return np.array(sheet)


class _Axis:
    """Numbers to pixels, with a tenth of their span free at both ends."""

    def __init__(self, values: Sequence[float], first: int, last: int) -> None:
        low, high = min(values), max(values)
        room = (high - low or abs(high) or 1.0) / 10
        self.low, self.high, self.first, self.last = low - room, high + room, first, last

    def place(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return self.first + share * (self.last - self.first)

    def ticks(self) -> list[float]:
        """Four to ten round numbers."""
        span = self.high - self.low
        power = 10.0 ** np.floor(np.log10(span))
        step = next(part * power for part in (1, 0.5, 0.2) if span / (part * power) >= 4)
        first = int(np.ceil(self.low / step))
        return [k * step for k in range(first, int(np.floor(self.high / step)) + 1)]


def _told(value: float) -> str:
    return f"{value:.7g}"
