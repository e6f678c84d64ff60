"""Training times: distributions, intervals, and that a draw is a sample's own."""

from __future__ import annotations

import pytest
import torch

from lit_restore.diffusion.interpolants import interpolant_named
from lit_restore.diffusion.times import (
    TimeDistribution,
    draw_times,
    stratified_times,
    training_interval,
)
from lit_restore.errors import UserError
from lit_restore.seeding import torch_generator

LOGIT_NORMAL = TimeDistribution(name="logit_normal", mean=-0.5, std=0.8)


def generators(count: int) -> list[torch.Generator]:
    return [torch_generator(0, position, "time") for position in range(count)]


def test_logit_normal_draws_have_the_moments_asked_for() -> None:
    t = draw_times(LOGIT_NORMAL, generators(8000)).double()
    logits = torch.logit(t)
    error = 0.8 / 8000**0.5
    assert logits.mean().item() == pytest.approx(-0.5, abs=5 * error)
    assert logits.std().item() == pytest.approx(0.8, abs=5 * error / 2**0.5)


def test_uniform_draws_are_uniform() -> None:
    t = draw_times(TimeDistribution(), generators(8000)).double()
    sorted_t, expected = t.sort().values, (torch.arange(8000) + 0.5) / 8000
    # Kolmogorov's distance: above 1.95/√n in one of a thousand seeds.
    assert (sorted_t - expected).abs().max().item() < 1.95 / 8000**0.5


@pytest.mark.parametrize("distribution", [TimeDistribution(), LOGIT_NORMAL])
def test_a_samples_time_does_not_depend_on_its_batch(distribution: TimeDistribution) -> None:
    together = draw_times(distribution, generators(5))
    assert torch.equal(draw_times(distribution, generators(5)[3:4]), together[3:4])


@pytest.mark.parametrize("distribution", [TimeDistribution(), LOGIT_NORMAL])
def test_strata_are_quantiles_inside_the_interval(distribution: TimeDistribution) -> None:
    within = (1e-3, 1 - 1e-5)
    t = stratified_times(distribution, 1000, within)
    assert t.min() >= within[0]
    assert t.max() <= within[1]
    assert (t.diff() > 0).all()
    middle = torch.logit((t[499:501].mean().double() - within[0]) / (within[1] - within[0]))
    assert middle.item() == pytest.approx(distribution.mean or 0.0, abs=1e-3)


def test_draws_of_zero_and_almost_one_stay_inside() -> None:
    u = torch.tensor([0.0, 1 - 1e-16], dtype=torch.float64)
    assert LOGIT_NORMAL.quantile(u).isfinite().all()


def test_training_intervals_are_sits() -> None:
    linear, vp = interpolant_named("linear"), interpolant_named("vp")
    assert training_interval(linear, "velocity") == (0, 1)
    assert training_interval(linear, "noise", "velocity") == (1e-3, 1 - 1e-3)
    assert training_interval(vp, "noise") == (0, 1 - 1e-5)
    assert training_interval(linear, "velocity", "likelihood") == (0, 1 - 1e-3)


def test_options_that_would_be_ignored_are_refused() -> None:
    with pytest.raises(UserError, match=r"times\.mean: only logit_normal"):
        TimeDistribution(mean=0.0)
    with pytest.raises(UserError, match=r"times\.std"):
        TimeDistribution(name="logit_normal", std=0.0)
    with pytest.raises(UserError, match=r"times\.name"):
        TimeDistribution(name="beta")  # type: ignore[arg-type]
