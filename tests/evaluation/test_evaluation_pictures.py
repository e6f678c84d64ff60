"""What is drawn: the crop shows pixels as they are, in places that matter."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lit_restore.evaluation.estimate import estimate_sigma
from lit_restore.evaluation.pictures import (
    CROP,
    Crop,
    Panel,
    interesting_crop,
    overview,
    side_by_side,
)
from lit_restore.evaluation.tiles import restore_tiled


def checker(height: int, width: int, top: int, left: int, side: int) -> np.ndarray:
    image = np.full((height, width, 3), 128, np.uint8)
    y, x = np.mgrid[:side, :side]
    image[top : top + side, left : left + side] = (((x // 4 + y // 4) % 2) * 255)[..., None]
    return image


def test_the_crop_is_where_the_texture_is() -> None:
    crop = interesting_crop(checker(300, 400, 150, 220, 120))
    assert crop.side == CROP
    assert 150 <= crop.top <= 150 + 120 - CROP
    assert 220 <= crop.left <= 220 + 120 - CROP


@pytest.mark.parametrize("shape", [(1, 1, 3), (5, 300, 1), (96, 96, 3), (97, 40, 3)])
def test_the_crop_is_inside_any_picture(shape: tuple[int, int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    crop = interesting_crop(image)
    assert crop.of(image).shape == (crop.side, crop.side, shape[2])


def test_zoomed_pixels_are_squares_of_the_original() -> None:
    rng = np.random.default_rng(1)
    image = rng.integers(0, 256, (120, 130, 3), np.uint8)
    crop = Crop(7, 9, CROP)
    sheet = side_by_side([Panel(pixels=image, name="clean")], crop, title="t")
    zoomed = crop.of(image).repeat(4, 0).repeat(4, 1)
    height, width = zoomed.shape[:2]
    found = [
        (top, left)
        for top, left in zip(*np.nonzero((sheet == zoomed[0, 0]).all(-1)), strict=True)
        if np.array_equal(sheet[top : top + height, left : left + width], zoomed)
    ]
    assert len(found) == 1


def test_sheets_have_room_for_every_panel_and_mixed_sizes() -> None:
    rng = np.random.default_rng(2)
    pictures = []
    for size in ((300, 200), (64, 500), (40, 30)):
        pixels = rng.integers(0, 256, (*size, 1), np.uint8)
        panels = [Panel(pixels=pixels, name=name, number="1 dB") for name in ("clean", "σ" * 99)]
        pictures.append((panels, interesting_crop(pixels)))
    sheet = overview(pictures, title="é" * 500)
    assert sheet.dtype == np.uint8
    assert sheet.shape[1] >= 3 * 3 * CROP
    assert (sheet[0] == 255).all()
    assert (sheet[:, -1] == 255).all()


# Tiles --------------------------------------------------------------------------------------------


def tiled(restore, x: torch.Tensor, **options: int) -> torch.Tensor:
    return restore_tiled(restore, x, 0.1, largest=0, **{"tile": 32, "overlap": 8, **options})


@pytest.mark.parametrize("size", [(32, 32), (33, 100), (90, 47), (20, 200)])
def test_tiles_cover_everything_once(size: tuple[int, int]) -> None:
    x = torch.rand(1, 3, *size)
    assert torch.allclose(tiled(lambda x, sigma: x, x), x, atol=1e-6)


def test_tiles_equal_one_pass_for_a_network_that_sees_less_than_the_overlap() -> None:
    torch.manual_seed(0)
    net = nn.Conv2d(3, 3, 3)
    shown: list[tuple[int, ...]] = []

    @torch.no_grad()
    def restore(x: torch.Tensor, sigma: float) -> torch.Tensor:
        shown.append(tuple(x.shape[-2:]))
        return net(F.pad(x, (1, 1, 1, 1), mode="replicate"))

    x = torch.rand(1, 3, 90, 70)
    whole = restore_tiled(restore, x, 0.1)
    assert shown == [(90, 70)]
    blended = tiled(restore, x)
    assert len(shown) > 4
    assert torch.allclose(blended, whole, atol=1e-6)
    # Without context each tile's padded border would show.
    assert not torch.allclose(tiled(restore, x, overlap=2), whole, atol=1e-3)


def test_tiles_keep_the_phase_of_coarser_scales() -> None:
    def pooled(x: torch.Tensor, sigma: float) -> torch.Tensor:
        padded = F.pad(x, (0, -x.shape[-1] % 8, 0, -x.shape[-2] % 8), mode="replicate")
        coarse = F.avg_pool2d(padded, 8).repeat_interleave(8, -1).repeat_interleave(8, -2)
        return coarse[..., : x.shape[-2], : x.shape[-1]]

    x = torch.rand(1, 3, 200, 171)
    assert torch.allclose(tiled(pooled, x, tile=64, overlap=32), pooled(x, 0.1), atol=1e-6)


def test_tiles_leave_no_seam() -> None:
    def shifting(x: torch.Tensor, sigma: float) -> torch.Tensor:
        return torch.full_like(x, float(x.mean()))

    x = torch.linspace(0, 1, 96).expand(1, 3, 32, 96)
    steps = tiled(shifting, x)[0, 0, 0].diff().abs()
    assert float(steps.max()) < 0.1
    side_by_side = tiled(shifting, x, overlap=0)[0, 0, 0].diff().abs()
    assert float(side_by_side.max()) > 0.3
    assert float(tiled(shifting, x)[0, 0, 0, -1]) > 0.7


# The blind estimate -------------------------------------------------------------------------------


@pytest.mark.parametrize("sigma", [5 / 255, 25 / 255, 50 / 255])
def test_the_estimate_finds_the_noise_of_a_smooth_picture(sigma: float) -> None:
    ramp = torch.linspace(0.3, 0.7, 128).expand(1, 3, 128, 128)
    noise = torch.randn(ramp.shape, generator=torch.Generator().manual_seed(0))
    assert estimate_sigma(ramp + sigma * noise) == pytest.approx(sigma, rel=0.05)
