"""Laws that every degradation in the list obeys, and those of each."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import torch

from lit_restore.data.degradations import (
    DEGRADATIONS,
    Chain,
    DefocusBlur,
    Degradation,
    Downscale,
    GaussianBlur,
    GaussianNoise,
    Haze,
    JpegArtifacts,
    MotionBlur,
    build_degradation,
    describe,
)
from lit_restore.errors import UserError

Kind = Callable[[], Degradation]
NEED_OPTIONS: dict[str, Kind] = {
    "Chain": lambda: Chain([GaussianBlur(), Downscale(2), GaussianNoise(), JpegArtifacts()]),
}
"""Those that cannot be built without options."""
KINDS: dict[str, Kind] = {**DEGRADATIONS, **NEED_OPTIONS}
every = pytest.mark.parametrize("kind", KINDS.values(), ids=list(KINDS))


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def image(seed: int = 0) -> torch.Tensor:
    coarse = torch.rand(1, 3, 6, 8, generator=generator(seed))
    return torch.nn.functional.interpolate(coarse, scale_factor=4, mode="bilinear")[0].clamp(0, 1)


@every
def test_sides_shrink_by_a_whole_scale_and_values_stay_near_the_range(kind: Kind) -> None:
    clean = image()
    degraded = kind()(clean, generator(1))
    assert degraded.dtype == clean.dtype
    scale = clean.shape[1] // degraded.shape[1]
    assert degraded.shape == (3, 24 // scale, 32 // scale)
    assert degraded.min() > -0.7
    assert degraded.max() < 1.7
    assert torch.equal(clean, image())  # the input is left alone


@every
def test_the_generator_alone_decides_what_is_drawn(kind: Kind) -> None:
    degradation, clean = kind(), image()
    first = degradation(clean, generator(3))
    torch.rand(5)  # the global generator does not matter
    assert torch.equal(first, degradation(clean, generator(3)))


@every
def test_a_sample_does_not_depend_on_its_batch(kind: Kind) -> None:
    degradation = kind()
    together = [degradation(image(k), generator(k)) for k in range(3)]
    assert torch.equal(together[2], degradation(image(2), generator(2)))


@every
def test_options_rebuild_it(kind: Kind) -> None:
    record = describe(kind())
    assert json.loads(json.dumps(record)) == record
    again = build_degradation(record)
    assert describe(again) == record
    assert torch.equal(again(image(), generator(0)), kind()(image(), generator(0)))


@every
def test_the_short_name_is_the_class_name(kind: Kind) -> None:
    made = kind()
    assert DEGRADATIONS[type(made).__name__] is type(made)


@every
def test_gray_tiny_and_double_images_are_degraded_too(kind: Kind) -> None:
    tiny = image()[:1, :4, :4].double()
    degraded = kind()(tiny, generator(0))
    assert degraded.dtype == torch.float64
    assert degraded.shape[0] == 1
    assert degraded.isfinite().all()


def test_gaussian_noise_has_its_level_and_is_not_clipped() -> None:
    clean = torch.zeros(3, 128, 128)
    noise = GaussianNoise(0.1, 0.1)(clean, generator(0))
    assert noise.std().item() == pytest.approx(0.1, rel=0.02)
    assert (noise < 0).float().mean().item() == pytest.approx(0.5, abs=0.02)


def test_gaussian_levels_fill_their_interval() -> None:
    noise = GaussianNoise(0.1, 0.3)
    levels = [noise(torch.zeros(3, 32, 32), generator(k)).std().item() for k in range(40)]
    assert 0.09 < min(levels) < 0.13
    assert 0.27 < max(levels) < 0.33


def test_jpeg_artifacts_grow_as_quality_falls() -> None:
    errors = []
    for quality in (90, 40, 10):
        degraded = JpegArtifacts(quality, quality)(image(), generator(0))
        assert torch.equal((degraded * 255).round() / 255, degraded)
        errors.append((degraded - image()).square().mean().item())
    assert errors == sorted(errors)


def test_downscaling_keeps_constants_and_refuses_sides_that_do_not_divide() -> None:
    flat = torch.full((3, 24, 32), 0.25)
    assert torch.allclose(Downscale(4)(flat, generator(0)), torch.full((3, 6, 8), 0.25))
    with pytest.raises(UserError, match=r"data\.crop: 32x24 does not divide by the scale 5"):
        Downscale(5)(flat, generator(0))
    with pytest.raises(UserError, match=r"the scale 1\.7; .* restore_size"):
        Downscale(1.7)(flat, generator(0))


@pytest.mark.parametrize(
    ("make", "key"),
    [
        (lambda: GaussianNoise(0.2, 0.1), "sigma_max"),
        (lambda: GaussianNoise(-0.1, 0.1), "sigma_max"),
        (lambda: JpegArtifacts(50, 20), "quality_max"),
        (lambda: JpegArtifacts(0, 20), "quality_max"),
        (lambda: Downscale(0.5), "scale"),
        (lambda: Downscale(2, scale_max=1.5, restore_size=True), "scale_max"),
        (lambda: Downscale(2, scale_max=4), "scale_max: gives every sample another size"),
        (lambda: GaussianBlur(2, 1), "sigma_max"),
        (lambda: GaussianBlur(-1, 1), "sigma_min"),
        (lambda: GaussianBlur(noise=-0.1), "noise"),
        (lambda: DefocusBlur(1, 99), "radius_max"),
        (lambda: DefocusBlur(0, 1), "radius_min"),
        (lambda: MotionBlur(9, 3), "length_max"),
        (lambda: MotionBlur(path="curve"), "path"),
        (lambda: MotionBlur(anxiety=1), "anxiety"),
        (lambda: Haze(beta_max=99), "beta_max"),
        (lambda: Haze(light_min=-1), "light_min"),
        (lambda: Chain([]), "steps"),
    ],
)
def test_impossible_options_name_their_key(make: object, key: str) -> None:
    with pytest.raises(UserError, match=rf"data\.degradation\.{key}"):
        make()  # type: ignore[operator]
