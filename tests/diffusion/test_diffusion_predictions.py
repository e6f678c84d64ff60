"""Conversions between predictions, against the closed forms of a mixture."""

from __future__ import annotations

import pytest
import torch
from exact_flows import NAMES, mixture, noise

from lit_restore.diffusion.interpolants import interpolant_named
from lit_restore.diffusion.predictions import PREDICTIONS, Estimates, convert, interval


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("source", PREDICTIONS)
@pytest.mark.parametrize("target", PREDICTIONS)
def test_every_conversion_is_the_closed_form(name: str, source: str, target: str) -> None:
    target_field = mixture(name)
    x = noise(5)
    t = torch.tensor([0.02, 0.3, 0.5, 0.8, 0.98], dtype=torch.float64)
    value = target_field.exact(source, x, t)
    got = convert(value, x, t, target_field.interpolant, source=source, target=target)
    assert torch.allclose(got, target_field.exact(target, x, t), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("name", ["linear", "gvp"])
@pytest.mark.parametrize("end", [0.0, 1.0])
@pytest.mark.parametrize("target", ["noise", "data"])
def test_a_velocity_gives_noise_and_data_at_both_ends(name: str, end: float, target: str) -> None:
    target_field = mixture(name)
    x, t = noise(3), torch.full((3,), end, dtype=torch.float64)
    estimates = target_field(x, t)
    assert torch.allclose(getattr(estimates, target), target_field.exact(target, x, t), atol=1e-12)


SINGULAR = {
    0.0: [("noise", "data"), ("noise", "velocity"), ("score", "data"), ("score", "velocity")],
    1.0: [("data", "noise"), ("data", "velocity"), ("data", "score"), ("velocity", "score"),
          ("noise", "score")],
}  # fmt: skip


@pytest.mark.parametrize("name", ["linear", "gvp"])
@pytest.mark.parametrize("end", SINGULAR)
def test_conversions_are_singular_at_the_stated_ends_and_nowhere_else(
    name: str, end: float
) -> None:
    interpolant = interpolant_named(name)
    x, t = noise(2), torch.full((2,), end, dtype=torch.float64)
    for source in PREDICTIONS:
        for target in PREDICTIONS:
            got = convert(noise(2, 1), x, t, interpolant, source=source, target=target)
            assert bool(got.isfinite().all()) != ((source, target) in SINGULAR[end])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_all_estimates_are_finite_on_the_interval(name: str, prediction: str) -> None:
    target_field = mixture(name)
    for end in interval(target_field.interpolant, prediction):
        x, t = noise(2).float(), torch.full((2,), end)
        value = target_field.exact(prediction, x.double(), t.double()).float()
        estimates = Estimates(value, prediction, x, t, target_field.interpolant)
        assert all(getattr(estimates, target).isfinite().all() for target in PREDICTIONS)


def test_intervals_are_sits() -> None:
    linear, vp = interpolant_named("linear"), interpolant_named("vp")
    assert interval(linear, "velocity") == (0, 1)
    assert interval(linear, "noise") == (1e-3, 1 - 1e-3)
    assert interval(vp, "velocity") == interval(vp, "score") == (0, 1 - 1e-3)
