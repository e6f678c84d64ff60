"""Tiles of an image: weights that add up to 1, and of a local network the output of one pass."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_restore.networks.tiling import tile_starts, tile_weights, tiled


@settings(max_examples=60, deadline=None)
@given(
    length=st.integers(1, 150), tile=st.integers(2, 60), share=st.floats(0, 0.99),
    scale=st.integers(1, 4),
)  # fmt: skip
def test_weights_add_up_to_one_everywhere(length: int, tile: int, share: float, scale: int) -> None:
    overlap = int(share * tile)
    starts = tile_starts(length, tile, overlap)
    total = torch.zeros(scale * length, dtype=torch.float64)
    for start, weights in zip(
        starts, tile_weights(length, tile, overlap, scale, starts), strict=True
    ):
        assert weights.min() >= 0
        total[scale * start : scale * start + len(weights)] += weights
    assert torch.allclose(total, torch.ones_like(total), atol=1e-14)


@settings(max_examples=60, deadline=None)
@given(blocks=st.integers(1, 40), tile=st.integers(2, 9), overlap=st.integers(0, 8))
def test_starts_are_in_phase_and_neighbours_overlap(blocks: int, tile: int, overlap: int) -> None:
    overlap = min(overlap, tile - 1)
    starts = tile_starts(8 * blocks, 8 * tile, 8 * overlap)
    assert starts[0] == 0
    assert starts[-1] + 8 * tile == max(8 * tile, 8 * blocks)
    assert all(start % 8 == 0 for start in starts)
    steps = [b - a for a, b in itertools.pairwise(starts)]
    assert all(0 < step <= 8 * (tile - overlap) for step in steps)


@pytest.mark.parametrize("scale", [1, 3])
def test_a_network_that_looks_no_further_than_a_quarter_of_the_overlap_gives_the_same(
    scale: int,
) -> None:
    generator = torch.Generator().manual_seed(0)
    kernel = torch.rand(1, 1, 9, 9, generator=generator, dtype=torch.float64)

    def look_four_pixels_around(x: torch.Tensor) -> torch.Tensor:
        out = torch.nn.functional.conv2d(x, kernel, padding=4)
        return out.repeat_interleave(scale, -1).repeat_interleave(scale, -2)

    images = torch.rand(2, 1, 61, 83, generator=generator, dtype=torch.float64)
    whole = look_four_pixels_around(images)

    def in_tiles(overlap: int) -> torch.Tensor:
        return tiled(look_four_pixels_around, images, scale=scale, tile=32, overlap=overlap)

    assert torch.allclose(in_tiles(16), whole, rtol=1e-12)
    assert not torch.allclose(in_tiles(8), whole, rtol=1e-3)


def test_tiles_that_disagree_meet_without_a_seam() -> None:
    calls = []

    def brighter_each_time(x: torch.Tensor) -> torch.Tensor:
        calls.append(len(calls))
        return torch.full_like(x, float(len(calls) - 1))

    out = tiled(brighter_each_time, torch.zeros(1, 1, 40, 90), scale=1, tile=40, overlap=20)
    assert len(calls) == 4
    steps = out.diff(dim=-1)
    assert steps.min() >= 0
    # A raised cosine over n = 10 pixels is steepest in its middle: π / (2 n) a pixel.
    assert steps.max() < 1.05 * torch.pi / 20 * 2  # twice: the last tile begins closer
    assert out[..., 0].eq(0).all()
    assert out[..., -1].eq(3).all()
