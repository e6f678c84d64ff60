"""What each blur, haze, scale and chain must do, from its equations."""

from __future__ import annotations

import math

import pytest
import torch

from lit_restore.data.degradations import (
    Chain,
    DefocusBlur,
    Degradation,
    Downscale,
    GaussianBlur,
    GaussianNoise,
    Haze,
    MotionBlur,
)
from lit_restore.data.degradations.haze import hazy, smooth_field
from lit_restore.data.degradations.motion import POINTS, camera_path
from lit_restore.ops.blur import path_kernel
from lit_restore.ops.resize import imresize

BLURS = [GaussianBlur(), DefocusBlur(), MotionBlur(), MotionBlur(path="line")]
blurs = pytest.mark.parametrize("blur", BLURS, ids=lambda b: type(b).__name__)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def image(height: int = 40, width: int = 48) -> torch.Tensor:
    return torch.rand(3, height, width, generator=generator(7), dtype=torch.float64)


@blurs
def test_blur_leaves_constants_and_stays_in_the_range(blur: Degradation) -> None:
    flat = torch.full((3, 20, 30), 0.3, dtype=torch.float64)
    assert torch.allclose(blur(flat, generator()), flat)
    blurred = blur(image(), generator())
    assert blurred.min() > 0
    assert blurred.max() < 1
    assert blurred.std() < 0.7 * image().std()


@blurs
def test_blur_shifts_nothing(blur: Degradation) -> None:
    point = torch.zeros(1, 101, 101, dtype=torch.float64)
    point[0, 50, 50] = 1
    for seed in range(3):
        spread = blur(point, generator(seed))[0]
        place = torch.arange(101, dtype=torch.float64) - 50
        assert spread.sum().item() == pytest.approx(1)
        assert (spread.sum(0) @ place).item() == pytest.approx(0, abs=1e-9)
        assert (spread.sum(1) @ place).item() == pytest.approx(0, abs=1e-9)


def test_noise_is_added_after_blur_with_its_level() -> None:
    flat = torch.full((3, 64, 64), 0.5)
    for kind in (GaussianBlur, DefocusBlur, MotionBlur):
        degraded = kind(noise=0.1)(flat, generator())
        assert (degraded - flat).std().item() == pytest.approx(0.1, rel=0.03)


def test_blur_of_the_least_width_leaves_the_image() -> None:
    sharp = [GaussianBlur(0, 0), DefocusBlur(0.4, 0.4), MotionBlur(0, 0)]
    for blur in sharp:
        assert torch.allclose(blur(image(), generator()), image())


def test_a_line_is_straight_and_of_its_length() -> None:
    path = camera_path(20.0, 0.0, generator())
    steps = path.diff(dim=0)
    assert path.shape == (POINTS, 2)
    assert torch.allclose(steps, steps[:1].expand_as(steps))
    assert (path[-1] - path[0]).norm().item() == pytest.approx(20)


def test_a_shaken_path_has_constant_speed_and_turns_ever_more_with_anxiety() -> None:
    reached = []
    for anxiety in (1e-6, 1e-3, 0.05):
        ends = []
        for seed in range(8):
            path = camera_path(30.0, anxiety, generator(seed))
            speeds = path.diff(dim=0).norm(dim=1)
            assert torch.allclose(speeds, torch.full_like(speeds, 30 / (POINTS - 1)))
            assert torch.allclose(path.mean(0), torch.zeros(2, dtype=torch.float64), atol=1e-12)
            ends.append((path[-1] - path[0]).norm().item())
        reached.append(sum(ends) / len(ends))
    assert reached[0] == pytest.approx(30, rel=1e-3)
    assert reached[0] > reached[1] > reached[2]


def test_a_path_lies_within_half_its_length_of_its_centre() -> None:
    # No point is farther from the centre of mass of a curve than half its length.
    for seed in range(5):
        side = len(path_kernel(camera_path(40.0, 0.005, generator(seed))))
        assert side <= 2 * 20 + 1


def test_haze_of_all_light_is_the_image_and_of_none_is_the_sky() -> None:
    clean, light = image(), torch.tensor(0.9, dtype=torch.float64)
    assert torch.equal(hazy(clean, torch.ones(40, 48, dtype=torch.float64), light), clean)
    sky = hazy(clean, torch.zeros(40, 48, dtype=torch.float64), light)
    assert torch.equal(sky, torch.full_like(clean, 0.9))
    assert torch.equal(Haze(0, 0)(clean, generator()), clean)


def test_haze_lies_between_the_image_and_the_sky_and_thickens_with_density() -> None:
    clean, distances = image() / 2, []
    for beta in (0.5, 1.0, 4.0):
        degraded = Haze(beta, beta, 0.8, 0.8)(clean, generator(3))
        share = (degraded - clean) / (0.8 - clean)  # 1 - t, the same in all channels
        assert share.min() > -1e-6
        assert share.max().item() == pytest.approx(1 - math.exp(-beta), abs=1e-4)
        assert torch.allclose(share, share[:1].expand_as(share), atol=1e-4)
        distances.append((degraded - 0.8).abs().mean().item())
    assert distances == sorted(distances, reverse=True)


def test_depth_fills_its_range_and_is_smooth_at_any_size() -> None:
    small, large = (smooth_field(n, n, generator(5)) for n in (32, 96))
    assert (large.min(), large.max()) == (0, 1)
    assert large.diff(dim=0).abs().max() < 0.15
    # The same picture at another size: every third sample of the large one is one of the small.
    assert torch.allclose(large[1::3, 1::3], small, atol=0.02)
    assert torch.equal(smooth_field(1, 1, generator()), torch.zeros(1, 1))


def test_a_whole_scale_is_matlabs_and_a_broken_one_has_the_divided_size() -> None:
    assert torch.equal(Downscale(4)(image(), generator()), imresize(image(), 0.25))
    assert Downscale(1.6)(image(), generator()).shape == (3, 25, 30)
    assert torch.allclose(Downscale(1)(image(), generator()), image())
    assert Downscale(4.0).options["scale"] == 4
    assert isinstance(Downscale(4.0).options["scale"], int)


@pytest.mark.parametrize("scale", [1.0, 1.37, 2.0, 3.5, 7.9])
def test_a_restored_size_is_the_images_and_nothing_moves(scale: float) -> None:
    down = torch.linspace(0.1, 0.9, 41, dtype=torch.float64)
    ramp = (down[:, None] * torch.linspace(1, 0.5, 53, dtype=torch.float64))[None]
    restored = Downscale(scale, restore_size=True)(ramp, generator())
    assert restored.shape == ramp.shape
    # Away from the borders, which are mirrored, a ramp stays where it is to a 20th of a pixel.
    edge = math.ceil(2 * scale)
    inside = (0, slice(edge, 41 - edge), slice(edge, 53 - edge))
    assert torch.allclose(restored[inside], ramp[inside], atol=0.02 / 20)
    assert (restored - ramp).abs().max() < 0.03 * scale


def test_a_drawn_scale_differs_from_sample_to_sample_within_its_range() -> None:
    degrade = Downscale(1, scale_max=8, restore_size=True)
    lost = [(degrade(image(), generator(k)) - image()).std().item() for k in range(12)]
    weakest = (Downscale(1, restore_size=True)(image(), generator()) - image()).std().item()
    strongest = (Downscale(8, restore_size=True)(image(), generator()) - image()).std().item()
    assert weakest <= min(lost) < max(lost) <= 1.05 * strongest
    assert len({round(value, 6) for value in lost}) > 6


def test_a_chain_is_its_steps_in_their_order() -> None:
    steps = [Downscale(2), GaussianNoise(0.1, 0.1)]
    draws = generator()
    expected = GaussianNoise(0.1, 0.1)(imresize(image(), 0.5), draws)
    assert torch.equal(Chain(steps)(image(), generator()), expected)
    assert Chain(steps[::-1])(image(), generator()).std() < expected.std()
