"""Side-by-side pictures: clean, noisy and every method, each with the same zoomed crop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from lit_restore.evaluation.metrics import luma
from lit_restore.io.quantise import Pixels
from lit_restore.ops.resize import imresize_pixels

CROP = 96
"""Side of the zoomed region, in pixels of the picture."""

_GAP, _MARGIN = 14, 20
_TITLE, _NAME, _NUMBER = 20, 24, 21
_LABEL = 68
"""Height of the two lines of text below a cell."""
_FRAME, _FRAME_WIDTH = (255, 221, 0), 3
_INK, _GREY, _PAPER = (20, 20, 20), (90, 90, 90), (255, 255, 255)
_STEEPEST = 40.0


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One picture with its labels."""

    pixels: Pixels
    """(H, W, 1 or 3)."""
    name: str
    number: str = ""
    """What is known about it: ``29.41 dB``."""


@dataclass(frozen=True)
class Crop:
    """A square region of a picture, in pixels."""

    top: int
    left: int
    side: int

    def of(self, pixels: Pixels) -> Pixels:
        """What is inside."""
        rows = slice(self.top, self.top + self.side)
        return pixels[rows, self.left : self.left + self.side]


def interesting_crop(clean: npt.NDArray[np.generic], side: int = CROP) -> Crop:
    """Where a picture has most to lose: the window with the largest mean gradient of luma.

    The gradient is bounded, so that texture counts and not one hard edge; candidates are an
    eighth of their side apart and keep a quarter of it away from the border if there is room.

    Args:
        clean: (H, W, 1 or 3) in [0, 255].
        side: of the window; smaller in pictures that are.
    """
    y = luma(clean) if clean.shape[2] == 3 else clean[..., 0].astype(np.float64)
    side = min(side, *y.shape)
    steep = np.zeros(y.shape)
    steep[:-1] += np.abs(np.diff(y, axis=0))
    steep[:, :-1] += np.abs(np.diff(y, axis=1))
    # Sums over all windows at once, from the integral image.
    total = np.pad(np.minimum(steep, _STEEPEST).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    tops, lefts = (_places(length, side) for length in y.shape)
    inside = total[np.ix_(tops + side, lefts + side)] + total[np.ix_(tops, lefts)]
    inside -= total[np.ix_(tops, lefts + side)] + total[np.ix_(tops + side, lefts)]
    row, column = np.unravel_index(int(inside.argmax()), inside.shape)
    return Crop(int(tops[row]), int(lefts[column]), side)


def _places(length: int, side: int) -> npt.NDArray[np.int64]:
    margin = min(side // 4, (length - side) // 2)
    return np.arange(margin, length - side - margin + 1, max(1, side // 8), dtype=np.int64)


def side_by_side(panels: Sequence[Panel], crop: Crop, *, title: str) -> Pixels:
    """All panels in a row, whole above and zoomed below.

    Args:
        panels: of one size; the first is the clean picture.
        crop: what is zoomed.
        title: above everything.

    Returns:
        (H', W', 3).
    """
    side = 4 * CROP
    wholes = [Panel(pixels=_whole(p.pixels, crop, side), name="") for p in panels]
    zooms = [
        Panel(pixels=_zoomed(p.pixels, crop, side), name=p.name, number=p.number) for p in panels
    ]
    return _sheet([wholes, zooms], side, title)


def overview(pictures: Sequence[tuple[Sequence[Panel], Crop]], *, title: str) -> Pixels:
    """One row a picture: the clean one as a whole, then the zoomed crop of every panel.

    Args:
        pictures: panels (the first is the clean picture) and what to zoom of each.
        title: above everything.

    Returns:
        (H', W', 3).
    """
    side = 3 * CROP
    rows = [
        [
            Panel(pixels=_whole(panels[0].pixels, crop, side), name=""),
            *(
                Panel(pixels=_zoomed(p.pixels, crop, side), name=p.name, number=p.number)
                for p in panels
            ),
        ]
        for panels, crop in pictures
    ]
    return _sheet(rows, side, title)


def _whole(pixels: Pixels, crop: Crop, side: int) -> Pixels:
    """The picture scaled down to fit a square, with the crop framed."""
    scale = min(1.0, side / max(pixels.shape[:2]))
    small = _colour(pixels if scale == 1 else np.asarray(imresize_pixels(pixels, scale), np.uint8))
    image = Image.fromarray(small)
    left, top, size = (round(scale * v) for v in (crop.left, crop.top, crop.side))
    box = (left, top, left + size - 1, top + size - 1)
    ImageDraw.Draw(image).rectangle(box, outline=_FRAME, width=_FRAME_WIDTH)
    return np.array(image)


def _zoomed(pixels: Pixels, crop: Crop, side: int) -> Pixels:
    """The crop with every pixel a square (no interpolation that would hide noise)."""
    factor = max(1, side // crop.side)
    return _colour(crop.of(pixels)).repeat(factor, axis=0).repeat(factor, axis=1)


def _colour(pixels: Pixels) -> Pixels:
    return pixels if pixels.shape[2] == 3 else np.repeat(pixels, 3, axis=2)


def _sheet(rows: Sequence[Sequence[Panel]], width: int, title: str) -> Pixels:
    """Cells of one width on white, each in the middle of its place, with its labels below."""
    heights = [max(panel.pixels.shape[0] for panel in row) for row in rows]
    labels = [_LABEL if any(panel.name for panel in row) else 0 for row in rows]
    columns = max(len(row) for row in rows)
    top = _MARGIN + _TITLE + _GAP
    size = (
        2 * _MARGIN + columns * width + (columns - 1) * _GAP,
        top + sum(heights) + sum(labels) + (len(rows) - 1) * _GAP + _MARGIN,
    )
    sheet = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(sheet)
    _text(draw, (_MARGIN, _MARGIN), title, _TITLE, _GREY, size[0] - 2 * _MARGIN)
    for row, height, label in zip(rows, heights, labels, strict=True):
        for column, panel in enumerate(row):
            left = _MARGIN + column * (width + _GAP)
            indent = (width - panel.pixels.shape[1]) // 2
            drop = (height - panel.pixels.shape[0]) // 2
            sheet.paste(Image.fromarray(panel.pixels), (left + indent, top + drop))
            _text(draw, (left, top + height + 4), panel.name, _NAME, _INK, width)
            _text(draw, (left, top + height + 8 + _NAME), panel.number, _NUMBER, _GREY, width)
        top += height + label + _GAP
    return np.array(sheet)


def _text(
    draw: ImageDraw.ImageDraw,
    place: tuple[int, int],
    text: str,
    size: int,
    colour: tuple[int, int, int],
    width: int,
) -> None:
    """One line, cut with dots where it is too wide."""
    font = ImageFont.load_default(size)
    # Pillow's own font has little beyond ASCII; its empty boxes would say nothing.
    shown = text.replace("σ", "sigma").encode("ascii", "replace").decode()
    cut = shown
    while cut and draw.textlength(cut, font=font) > width:
        shown = shown[:-1]
        cut = shown.rstrip() + "..."
    draw.text(place, cut, fill=colour, font=font)
