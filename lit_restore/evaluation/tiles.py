"""Pictures too large for one pass: overlapping tiles, blended."""

from __future__ import annotations

import torch
from torch import Tensor

from lit_restore.evaluation.methods import Restore
from lit_restore.networks.tiling import LARGEST, TILE, overlap_of

OVERLAP = overlap_of(TILE)


def restore_tiled(
    restore: Restore,
    noisy: Tensor,
    sigma: float,
    *,
    largest: int = LARGEST,
    tile: int = TILE,
    overlap: int = OVERLAP,
) -> Tensor:
    """Apply a method to a picture of any size.

    Above `largest` pixels it is cut into tiles that overlap. Of the overlap, the outer quarter of
    a tile is context only, and over the middle half tiles fade into each other. The output is that
    of one pass if the method looks no further than a quarter of the overlap; else it differs a
    little, without a seam.

    Args:
        restore: the method.
        noisy: (B, C, H, W).
        sigma: in image units.
        largest: pixels (H·W) up to which there is one piece.
        tile: side of a tile.
        overlap: of neighbours, in pixels; less than half a tile.

    Returns:
        (B, C, H, W), float32 on the CPU.
    """
    height, width = noisy.shape[-2:]
    if height * width <= largest:
        return restore(noisy, sigma).float().cpu()
    total = torch.zeros(noisy.shape, dtype=torch.float32)
    weight = torch.zeros(1, 1, height, width)
    for top in _starts(height, tile, overlap):
        for left in _starts(width, tile, overlap):
            place = (..., slice(top, top + tile), slice(left, left + tile))
            output = restore(noisy[place], sigma).float().cpu()
            window = _window(top, output.shape[-2], height, overlap)[:, None]
            window = window * _window(left, output.shape[-1], width, overlap)
            total[place] += window * output
            weight[place] += window
    return total / weight


def _starts(length: int, tile: int, overlap: int) -> range:
    """Where tiles begin, at multiples of the step (a power of two divides it, so that networks with
    coarser scales see the same phase as in one pass); the last tile may be shorter.
    """
    return range(0, max(1, length - overlap), tile - overlap)


def _window(start: int, length: int, whole: int, overlap: int) -> Tensor:
    """Weights of a tile along one dimension: 1, but fading to 0 where it meets another tile."""
    context, ramp = overlap // 4, max(1, overlap // 2)
    place = torch.arange(1, length + 1, dtype=torch.float32)
    weights = torch.ones(length)
    if start > 0:
        weights = ((place - context) / ramp).clamp(0, 1)
    if start + length < whole:
        weights = weights * ((place.flip(0) - context) / ramp).clamp(0, 1)
    return weights
