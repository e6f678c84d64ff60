"""Images too large for one pass of a network: overlapping tiles that fade into each other.

Tiles are all of one size, and their weights add up to 1 at every pixel. Of an overlap, the quarter
next to a tile's edge is context only (its weight is 0), and over the middle half tiles fade. So a
network that looks no further than a quarter of the overlap gives exactly what it gives in one pass,
and no other shows a seam.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

LARGEST = 4_000_000
"""Pixels of a network's output that go through in one piece, where no tile is set."""
TILE, LEAST_TILE = 1024, 64
"""Beyond it, and the least that may be set: side of a tile of the output."""


def overlap_of(tile: int) -> int:
    """Of neighbouring tiles: 128 pixels of the output, or half of a small tile."""
    return min(128, tile // 2)


def tile_for(height: int, width: int, tile: int | None) -> int | None:
    """Side of the tiles of an output of this size; None where it goes through in one piece.

    Args:
        height: of the output.
        width: of the output.
        tile: the largest side in one piece; None: tiles of `TILE` above `LARGEST` pixels.
    """
    if tile is not None:
        return tile if max(height, width) > tile else None
    return TILE if height * width > LARGEST else None


def tiled(
    apply: Callable[[Tensor], Tensor],
    images: Tensor,
    *,
    scale: int,
    tile: int,
    overlap: int,
) -> Tensor:
    """Apply a network tile by tile.

    Args:
        apply: the network, (B, C, h, w) → (B, C', scale · h, scale · w).
        images: (B, C, H, W).
        scale: how many times larger the network's output is.
        tile: side of a tile in pixels of `images`, more than `overlap`.
        overlap: least overlap of neighbours, in pixels of `images`.

    Returns:
        (B, C', scale · H, scale · W), in one pass where both sides are within `tile`.
    """
    height, width = images.shape[-2:]
    rows, columns = tile_starts(height, tile, overlap), tile_starts(width, tile, overlap)
    if len(rows) == len(columns) == 1:
        return apply(images)
    down = tile_weights(height, tile, overlap, scale, rows)
    across = tile_weights(width, tile, overlap, scale, columns)
    total: Tensor | None = None
    for top, row_weights in zip(rows, down, strict=True):
        for left, column_weights in zip(columns, across, strict=True):
            out = apply(images[..., top : top + tile, left : left + tile])
            if total is None:
                total = out.new_zeros(*out.shape[:2], scale * height, scale * width)
            place = (
                ...,
                slice(scale * top, scale * top + out.shape[-2]),
                slice(scale * left, scale * left + out.shape[-1]),
            )
            total[place] += out * row_weights[:, None].to(out) * column_weights.to(out)
    assert total is not None
    return total


def tile_starts(length: int, tile: int, overlap: int) -> list[int]:
    """Where the tiles of one dimension begin.

    Multiples of tile - overlap, and the last tile ends where the image does: where the length, the
    tile and the overlap are multiples of some number, so are all starts, and a network with coarser
    scales sees the same phase in every tile.
    """
    assert 0 <= overlap < tile, (tile, overlap)
    if length <= tile:
        return [0]
    step = tile - overlap
    count = 1 + math.ceil((length - tile) / step)
    return [min(k * step, length - tile) for k in range(count)]


def tile_weights(
    length: int, tile: int, overlap: int, scale: int, starts: list[int]
) -> list[Tensor]:
    """Weights of each tile of one dimension, which add up to 1 at every output pixel.

    A raised cosine over the middle half of the overlap; none at the ends of the image.

    Returns:
        A tensor (scale · min(tile, length),) in float64 for each of `starts`.
    """
    size = scale * min(tile, length)
    inside = (torch.arange(size, dtype=torch.float64) + 0.5) / scale
    context, ramp = overlap / 4, max(overlap / 2, 1e-9)
    rising = ((inside - context) / ramp).clamp(0, 1).mul(math.pi / 2).sin().square()
    windows, total = [], torch.zeros(scale * length, dtype=torch.float64)
    for start in starts:
        window = torch.ones(size, dtype=torch.float64)
        if start > 0:
            window = window * rising
        if start + tile < length:
            window = window * rising.flip(0)
        windows.append(window)
        total[scale * start : scale * start + size] += window
    return [
        window / total[scale * start : scale * start + size]
        for start, window in zip(starts, windows, strict=True)
    ]
