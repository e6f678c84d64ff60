"""In which order a scan visits the tokens of a grid, layer by layer.

Tokens are numbered row-major: row y and column x of an (H, W) grid is token y·W + x. An order is
a permutation `index` of them: step t of the scan visits token index[t]. The orders are those of
DiMSUM (Phung et al. 2024, arXiv 2411.04168), of which ZigMa (Hu et al. 2024, arXiv 2403.13802) has
the zigzag; here grids may be rectangular.

    sweep-4           row-major, the same reversed, column-major, the same reversed: the released
                      models' spatial branch
    sweep-K           row after row (or column after column) from a corner, every row the same way
    sweep-4-corners   sweep-K of K = 4, which "sweep-4" is not
    zigzag-K          as sweep-K, but every second row the other way: each step is to a neighbour
    jpeg-K            anti-diagonals from a corner, every second one the other way
    window            windows of a quarter of the grid's sides, one after the other: the released
                      models' frequency branch; odd layers transpose both levels
    window-S          the same with windows of S × S
    raster            row-major in every layer

K (1 to 8) is how many paths the layers cycle through. Paths 2c and 2c + 1 start at corner c of top
left, top right, bottom left, bottom right; the former goes along the rows, the latter along the
columns (`jpeg-K`: takes its first step along the row, the column).
"""

from __future__ import annotations

import re
from collections.abc import Callable

import torch
from torch import Tensor

from lit_restore.errors import UserError

_KIND = re.compile(r"(?P<name>sweep|zigzag|jpeg)-(?P<paths>[1-8])(?P<corners>-corners)?")
_WINDOW = re.compile(r"window(?:-(?P<side>[1-9][0-9]{0,5}))?")
_CORNER_FLIPS: tuple[tuple[int, ...], ...] = ((), (1,), (0,), (0, 1))
"""Axes whose flip brings top left, top right, bottom left, bottom right to the top left."""


def scan_order(kind: str, layer: int, height: int, width: int) -> Tensor:
    """The order in which a layer visits the tokens.

    Args:
        kind: a name of the list above.
        layer: number of the layer, from 0.
        height: rows of the grid.
        width: columns of the grid.

    Returns:
        (height · width,) int64 on the CPU, a permutation: step → token.

    Raises:
        UserError: there is no such kind, or its windows do not divide the grid.
    """
    assert layer >= 0, layer
    assert height > 0, height
    assert width > 0, width
    grid = torch.arange(height * width).view(height, width)
    if kind == "raster":
        return grid.flatten()
    if kind == "sweep-4":
        return _alternating(grid, layer)
    if window := _WINDOW.fullmatch(kind):
        return _windows(grid, layer, _window_sides(kind, window["side"], height, width))
    path = _KIND.fullmatch(kind)
    if path is None or (path["corners"] and (path["name"], path["paths"]) != ("sweep", "4")):
        raise UserError(
            "is no such order: take sweep-K, zigzag-K or jpeg-K with K from 1 to 8, "
            "sweep-4-corners, window, window-S with a side S, or raster",
            where=f"scan order {kind!r}",
        )
    return _PATHS[path["name"]](_seen_from_corner(grid, layer % int(path["paths"])))


def inverse_order(index: Tensor) -> Tensor:
    """The permutation that undoes another: token → step.

    Args:
        index: permutations (..., N), int64.

    Returns:
        (..., N) int64 with inverse[index[t]] = t.
    """
    return index.argsort(dim=-1)


def _alternating(grid: Tensor, layer: int) -> Tensor:
    along = (grid if layer % 4 < 2 else grid.T).flatten()
    return along.flip(0) if layer % 2 else along


def _seen_from_corner(grid: Tensor, path: int) -> Tensor:
    """The grid turned so that the path starts at its top left and goes along its rows."""
    turned = grid.flip(_CORNER_FLIPS[path // 2])
    return turned.T if path % 2 else turned


def _sweep(grid: Tensor) -> Tensor:
    return grid.flatten()


def _zigzag(grid: Tensor) -> Tensor:
    grid = grid.clone()
    grid[1::2] = grid[1::2].flip(1)
    return grid.flatten()


def _jpeg(grid: Tensor) -> Tensor:
    rows, columns = (torch.arange(side) for side in grid.shape)
    diagonal = rows[:, None] + columns
    # Odd diagonals go down, even ones up: the first step is along the row.
    place = torch.where(diagonal % 2 == 1, rows[:, None], -rows[:, None])
    return grid.flatten()[(diagonal * 2 * len(rows) + place).flatten().argsort()]


_PATHS: dict[str, Callable[[Tensor], Tensor]] = {"sweep": _sweep, "zigzag": _zigzag, "jpeg": _jpeg}


def _windows(grid: Tensor, layer: int, sides: tuple[int, int]) -> Tensor:
    height, width = grid.shape
    down, across = sides
    split = grid.view(height // down, down, width // across, across)
    return split.permute((2, 0, 3, 1) if layer % 2 else (0, 2, 1, 3)).flatten()


def _window_sides(kind: str, side: str | None, height: int, width: int) -> tuple[int, int]:
    if side is None:
        divides, sides, need = not (height % 4 or width % 4), (height // 4, width // 4), 4
        mend = "take window-S with a side S that divides both, or another size of input"
    else:
        need = int(side)
        divides, sides = not (height % need or width % need), (need, need)
        mend = "take another side or another size of input"
    if not divides:
        raise UserError(
            f"a grid of {height}x{width} tokens is not divisible by {need}; {mend}",
            where=f"scan order {kind!r}",
        )
    return sides
