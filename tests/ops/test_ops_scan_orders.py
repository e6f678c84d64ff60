"""Scan orders: permutations, their definitions by loops, adjacency, layer cycling."""

from __future__ import annotations

import itertools

import pytest
import torch

from lit_restore.errors import UserError
from lit_restore.ops.scan_orders import inverse_order, scan_order

GRIDS = [(4, 4), (8, 4), (4, 12), (12, 8)]
PATHS = [f"{name}-{k}" for name in ("sweep", "zigzag", "jpeg") for k in range(1, 9)]
KINDS = [*PATHS, "sweep-4-corners", "window", "window-2", "window-4", "raster"]

every_grid = pytest.mark.parametrize("grid", GRIDS, ids=str)


def places(kind: str, layer: int, grid: tuple[int, int]) -> list[tuple[int, int]]:
    """(row, column) of every step."""
    return [divmod(t, grid[1]) for t in scan_order(kind, layer, *grid).tolist()]


@every_grid
@pytest.mark.parametrize("kind", KINDS)
def test_every_order_is_a_permutation_that_inverse_order_undoes(kind, grid):
    for layer in range(9):
        index = scan_order(kind, layer, *grid)
        count = grid[0] * grid[1]
        assert index.dtype == torch.int64
        assert sorted(index.tolist()) == list(range(count))
        inverse = inverse_order(index)
        assert inverse[index].tolist() == index[inverse].tolist() == list(range(count))


def test_inverse_order_takes_a_stack_of_orders():
    stack = torch.stack([scan_order("jpeg-8", layer, 3, 5) for layer in range(4)])
    for index, inverse in zip(stack, inverse_order(stack), strict=True):
        assert inverse.tolist() == inverse_order(index).tolist()


@every_grid
def test_sweep_4_is_the_released_alternation(grid):
    height, width = grid
    rows = [(y, x) for y in range(height) for x in range(width)]
    columns = [(y, x) for x in range(width) for y in range(height)]
    for layer in range(9):
        along = [rows, columns][layer % 4 // 2]
        assert places("sweep-4", layer, grid) == (along[::-1] if layer % 2 else along)


def corner_walk(path: int, grid: tuple[int, int], *, turn: bool) -> list[tuple[int, int]]:
    """Rows (or columns) from corner path // 2 by explicit loops; `turn`: every second reversed."""
    down, right = (path // 2 < 2), (path // 2 % 2 == 0)
    ys = range(grid[0]) if down else range(grid[0] - 1, -1, -1)
    xs = range(grid[1]) if right else range(grid[1] - 1, -1, -1)
    walk = []
    outer, inner = (xs, ys) if path % 2 else (ys, xs)
    for k, a in enumerate(outer):
        for b in reversed(inner) if turn and k % 2 else inner:
            walk.append((b, a) if path % 2 else (a, b))
    return walk


@every_grid
@pytest.mark.parametrize("turn", [False, True], ids=["sweep", "zigzag"])
def test_corner_paths_go_along_rows_then_columns_of_each_corner(turn, grid):
    kind = "zigzag-8" if turn else "sweep-8"
    for path in range(8):
        assert places(kind, path, grid) == corner_walk(path, grid, turn=turn)


def jpeg_walk(height: int, width: int) -> list[tuple[int, int]]:
    """The zigzag of JPEG as a walk that bounces off the edges."""
    y, x, up = 0, 0, True
    walk = [(0, 0)]
    while (y, x) != (height - 1, width - 1):
        if up and x == width - 1:
            y, up = y + 1, False
        elif up and y == 0:
            x, up = x + 1, False
        elif up:
            y, x = y - 1, x + 1
        elif y == height - 1:
            x, up = x + 1, True
        elif x == 0:
            y, up = y + 1, True
        else:
            y, x = y + 1, x - 1
        walk.append((y, x))
    return walk


@every_grid
def test_jpeg_is_the_bouncing_walk_from_each_corner(grid):
    height, width = grid
    for path in range(8):
        if path % 2:
            walk = [(y, x) for x, y in jpeg_walk(width, height)]
        else:
            walk = jpeg_walk(height, width)
        if path // 2 >= 2:
            walk = [(height - 1 - y, x) for y, x in walk]
        if path // 2 % 2:
            walk = [(y, width - 1 - x) for y, x in walk]
        assert places("jpeg-8", path, grid) == walk


def test_jpeg_starts_as_the_table_of_the_standard():
    # ITU-T T.81, figure A.6: the order of the coefficients of an 8x8 block.
    expected = [0, 1, 8, 16, 9, 2, 3, 10, 17, 24, 32, 25, 18, 11, 4, 5, 12, 19, 26, 33, 40, 48]
    assert scan_order("jpeg-1", 0, 8, 8)[:22].tolist() == expected


@every_grid
def test_each_step_of_a_zigzag_is_to_a_neighbour_and_of_jpeg_to_a_touching_token(grid):
    for layer in range(8):
        for (y0, x0), (y1, x1) in itertools.pairwise(places("zigzag-8", layer, grid)):
            assert abs(y0 - y1) + abs(x0 - x1) == 1
        for (y0, x0), (y1, x1) in itertools.pairwise(places("jpeg-8", layer, grid)):
            assert max(abs(y0 - y1), abs(x0 - x1)) == 1


@pytest.mark.parametrize("kind", [k for k in PATHS if k != "sweep-4"] + ["sweep-4-corners"])
def test_layers_cycle_through_the_first_paths_of_the_eight(kind):
    name, count = kind.split("-")[0], int(kind.split("-")[1])
    for layer in range(2 * count + 1):
        expected = scan_order(f"{name}-8", layer % count, 4, 6)
        assert torch.equal(scan_order(kind, layer, 4, 6), expected)


def test_the_eight_paths_differ():
    for name in ("sweep", "zigzag", "jpeg"):
        seen = {tuple(scan_order(f"{name}-8", layer, 4, 6).tolist()) for layer in range(8)}
        assert len(seen) == 8


@every_grid
@pytest.mark.parametrize("side", [None, 2, 4])
def test_windows_one_after_the_other_and_odd_layers_transpose_both_levels(side, grid):
    height, width = grid
    down, across = (side, side) if side else (height // 4, width // 4)
    kind = f"window-{side}" if side else "window"
    even = []
    odd = []
    for top in range(0, height, down):
        for left in range(0, width, across):
            for y in range(top, top + down):
                even += [(y, x) for x in range(left, left + across)]
    for left in range(0, width, across):
        for top in range(0, height, down):
            for x in range(left, left + across):
                odd += [(y, x) for y in range(top, top + down)]
    assert [places(kind, layer, grid) for layer in range(4)] == [even, odd, even, odd]


def test_raster_is_row_major_in_every_layer():
    assert all(scan_order("raster", layer, 3, 5).tolist() == list(range(15)) for layer in range(3))


@pytest.mark.parametrize(
    "kind",
    ["", "sweep", "sweep-0", "sweep-9", "sweep-10", "jpeg-4-corners", "sweep-8-corners", "window-0",
     "window-", "Raster", "zigzag-4 "],
)  # fmt: skip
def test_unknown_kinds_are_refused_in_one_line(kind):
    with pytest.raises(UserError, match="is no such order: take sweep-K") as caught:
        scan_order(kind, 0, 4, 4)
    assert caught.value.where == f"scan order {kind!r}"
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("kind", "grid", "need"), [
    ("window", (6, 8), 4), ("window", (8, 6), 4), ("window-3", (6, 8), 3), ("window-16", (8, 8), 16)
])  # fmt: skip
def test_windows_that_do_not_divide_the_grid_are_refused(kind, grid, need):
    text = f"a grid of {grid[0]}x{grid[1]} tokens is not divisible by {need}; take "
    with pytest.raises(UserError, match=text):
        scan_order(kind, 0, *grid)
