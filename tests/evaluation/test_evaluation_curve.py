"""The curve of fidelity against perception: points where their values belong, round numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.ndimage import label

from lit_restore.evaluation.curve import Point, _Axis, _told, curve
from lit_restore.io.quantise import Pixels

DOT, GRID, LINE = (196, 80, 50), (205, 205, 205), (63, 127, 196)


def drawn(*points: tuple[float, float]) -> Pixels:
    named = [Point(label=f"tau {k}", x=x, y=y) for k, (x, y) in enumerate(points)]
    return curve(named, x="psnr", y="lpips", title="title")


def of_colour(sheet: Pixels, colour: tuple[int, int, int]) -> np.ndarray:
    mask: np.ndarray = (sheet == np.array(colour, np.uint8)).all(-1)
    return mask


def dots(sheet: Pixels) -> list[tuple[float, float]]:
    """(x, y) of the dots' middles in pixels, from the left."""
    marked, count = label(of_colour(sheet, DOT))
    middles = []
    for number in range(1, count + 1):
        rows, columns = np.nonzero(marked == number)
        middles.append((float(columns.mean()), float(rows.mean())))
    return sorted(middles)


def plot_area(sheet: Pixels) -> tuple[int, int, int, int]:
    """Left, right, top and bottom: where the lines of the grid end."""
    mask = of_colour(sheet, GRID)
    across = np.nonzero(mask[mask.sum(1).argmax()])[0]
    down = np.nonzero(mask[:, mask.sum(0).argmax()])[0]
    return int(across[0]), int(across[-1]), int(down[0]), int(down[-1])


def grid(sheet: Pixels) -> list[int]:
    """Columns of the upright lines of the grid."""
    mask = of_colour(sheet, GRID)
    return [int(k) for k in np.nonzero(mask.sum(0) > 0.6 * mask.shape[0])[0]]


def test_points_lie_at_their_values_with_a_tenth_of_the_span_around() -> None:
    points = [(20.0, 0.5), (22.0, 0.1), (30.0, 0.2), (26.0, 0.4)]
    sheet = drawn(*points)
    assert sheet.shape == (640, 900, 3)
    assert sheet.dtype == np.uint8
    left, right, top, bottom = plot_area(sheet)
    found = dots(sheet)
    assert len(found) == 4
    for (x, y), (across, down) in zip(sorted(points), found, strict=True):
        assert across == pytest.approx(left + (x - 19) / 12 * (right - left), abs=1.5)
        assert down == pytest.approx(bottom - (y - 0.06) / 0.48 * (bottom - top), abs=1.5)


def test_the_line_goes_through_the_points_in_their_order() -> None:
    sheet = drawn((0.0, 0.0), (4.0, 4.0), (8.0, 0.0))
    (a, b), (c, d), (e, f) = dots(sheet)
    line = of_colour(sheet, LINE)
    for (x0, y0), (x1, y1), there in (
        ((a, b), (c, d), True), ((c, d), (e, f), True), ((a, b), (e, f), False),
    ):  # fmt: skip
        middle = round((y0 + y1) / 2), round((x0 + x1) / 2)
        assert line[middle] == there
    assert not of_colour(drawn((1.0, 2.0)), LINE).any()


def test_a_tick_stands_where_a_point_of_its_value_does() -> None:
    sheet = drawn((20.0, 1.0), (24.0, 3.0), (30.0, 2.0))  # ticks 20, 22 … 30
    columns = grid(sheet)
    assert len(columns) == 6
    for k, (across, _) in zip((0, 2, 5), dots(sheet), strict=True):
        assert columns[k] == pytest.approx(across, abs=1.5)


def test_one_point_is_in_the_middle() -> None:
    for value in (27.5, -3.0, 0.0):
        sheet = drawn((value, value))
        left, right, top, bottom = plot_area(sheet)
        ((across, down),) = dots(sheet)
        assert across == pytest.approx((left + right) / 2, abs=1)
        assert down == pytest.approx((top + bottom) / 2, abs=1)


def test_points_of_one_value_lie_on_a_line() -> None:
    level = dots(drawn((20.0, 0.3), (25.0, 0.3), (30.0, 0.3)))
    assert len({down for _, down in level}) == 1
    upright = dots(drawn((20.0, 0.1), (20.0, 0.2), (20.0, 0.3)))
    assert len({across for across, _ in upright}) == 1
    assert len(upright) == 3
    assert len(dots(drawn((20.0, 0.1), (20.0, 0.1)))) == 1


def test_titles_and_labels_are_written() -> None:
    point = [Point(label="tau 5", x=1.0, y=2.0)]
    named = curve(point, x="psnr", y="lpips", title="of tau")
    for other in (
        curve(point, x="ssim", y="lpips", title="of tau"),
        curve(point, x="psnr", y="niqe", title="of tau"),
        curve(point, x="psnr", y="lpips", title="of time"),
        curve([Point(label="tau 7", x=1.0, y=2.0)], x="psnr", y="lpips", title="of tau"),
    ):
        assert (named != other).any()


@pytest.mark.parametrize("low", [0.0, 21.3, -5.0, 1e-3])
def test_ticks_are_four_to_ten_multiples_of_1_2_or_5_inside_the_axis(low: float) -> None:
    for k in range(200):
        high = low + 10 ** (k / 40 - 2)  # spans of 0.01 to 1000
        axis = _Axis([low, high], 0, 100)
        ticks = axis.ticks()
        assert 4 <= len(ticks) <= 10, (low, high, ticks)
        assert axis.low <= ticks[0]
        assert ticks[-1] <= axis.high
        step = (ticks[-1] - ticks[0]) / (len(ticks) - 1)
        digits = step / 10 ** math.floor(math.log10(step) + 1e-9)
        assert min(abs(digits - whole) for whole in (1, 2, 5)) < 1e-6, (low, high, step)
        assert len({_told(tick) for tick in ticks}) == len(ticks)
        for tick in ticks:
            assert tick / step == pytest.approx(round(tick / step), abs=1e-6)
