"""Pictures too large for one pass: overlapping tiles, blended."""

from __future__ import annotations

import torch
from torch import Tensor

from lit_restore.evaluation.methods import Restore

TILE, OVERLAP = 1024, 64
LARGEST = 4_000_000
"""Pixels up to which a picture goes through in one piece."""


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

    Above `largest` pixels it is cut into tiles that overlap; each counts most in its middle and
    fades out linearly over the overlap, so that no seam is visible. What a network sees beyond the
    overlap is lost: outputs differ from those of one pass where its field of view is wider.

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
            window = _window(output.shape[-2], overlap)[:, None]
            window = window * _window(output.shape[-1], overlap)
            total[place] += window * output
            weight[place] += window
    return total / weight


def _starts(length: int, tile: int, overlap: int) -> list[int]:
    """Where tiles begin: evenly, the last one ending at the border."""
    if length <= tile:
        return [0]
    count = -(-(length - overlap) // (tile - overlap))
    return [round(i * (length - tile) / (count - 1)) for i in range(count)]


def _window(length: int, overlap: int) -> Tensor:
    """1 inside, falling to (but not quite) 0 over the overlap."""
    place = torch.arange(1, length + 1, dtype=torch.float32)
    return torch.minimum(place, place.flip(0)).clamp(max=overlap) / overlap
