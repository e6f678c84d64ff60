"""Dormand–Prince with step control per sample: accuracy, cost, and independence of the batch."""

from __future__ import annotations

import pytest
import torch
from exact_flows import NAMES, gaussian, mixture, noise
from torch import Tensor

from lit_restore.diffusion.interpolants import interpolant_named
from lit_restore.diffusion.predictions import Estimates
from lit_restore.diffusion.prior import FlowPrior
from lit_restore.diffusion.solvers import dopri5, dormand_prince, solver_named

ENDS = torch.tensor([0.0, 1.0], dtype=torch.float64)


class Cubic:
    """dx/dt = t − x³/4 per element: stiffer the larger x, and of sums and products alone."""

    interval = (0.0, 1.0)
    interpolant = interpolant_named("linear")

    def __init__(self) -> None:
        self.rows = 0
        self.calls = 0

    def __call__(self, x: Tensor, t: Tensor) -> Estimates:
        self.rows += len(x)
        self.calls += 1
        return Estimates(t[:, None] - x * x * x / 4, "velocity", x, t, self.interpolant)

    def take(self, rows: Tensor) -> Cubic:
        return self


def spread_out() -> Tensor:
    """Samples that need very different numbers of steps, (6, 37)."""
    scale = torch.tensor([0.1, 8.0, 1.0, 30.0, 3.0, 0.5], dtype=torch.float64)
    return noise(6, size=37) * scale[:, None]


def test_the_coefficients_fulfil_the_conditions_of_their_orders() -> None:
    c = (0.0, *dormand_prince._NODES)
    rows = ((), *dormand_prince._STAGES)
    inner = [sum(a * c[j] for j, a in enumerate(row)) for row in rows]
    square = [sum(a * c[j] ** 2 for j, a in enumerate(row)) for row in rows]
    assert [sum(row) for row in rows] == pytest.approx(c, abs=1e-14)
    # Simplifying assumption of all stages but the second: Σ a_ij c_j = c_i²/2, and of the fourth
    # order on Σ a_ij c_j² = c_i³/3 under the weights.
    assert inner[2:] == pytest.approx([x**2 / 2 for x in c[2:]], abs=1e-14)
    fifth = (*dormand_prince._STAGES[-1], 0.0)
    for weights, order in ((fifth, 5), (dormand_prince._FOURTH, 4)):
        for power in range(order):
            total = sum(b * x**power for b, x in zip(weights, c, strict=True))
            assert total == pytest.approx(1 / (power + 1), abs=1e-14)
        cubes = sum(b * s for b, s in zip(weights, square, strict=True))
        assert cubes == pytest.approx(1 / 12, abs=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_sample_and_its_cost_do_not_depend_on_its_batch(dtype: torch.dtype) -> None:
    x = spread_out().to(dtype)
    together = dopri5(Cubic(), x, ENDS)
    assert len(set(together.nfe.tolist())) >= 4
    for rows in ([3], [0], [5, 1], [2, 4, 0, 3]):
        alone = dopri5(Cubic(), x[rows], ENDS)
        assert torch.equal(alone.samples, together.samples[rows])
        assert torch.equal(alone.nfe, together.nfe[rows])
    assert together.finished.all()


def test_samples_that_have_arrived_cost_nothing() -> None:
    field = Cubic()
    result = dopri5(field, spread_out(), ENDS)
    assert field.rows == int(result.nfe.sum())
    assert field.calls == int(result.nfe.max())


@pytest.mark.parametrize("seed", range(2))
def test_a_batch_of_one_agrees_with_torchdiffeq(seed: int) -> None:
    field, x = mixture("gvp"), noise(1, seed, size=20)
    theirs = solver_named("torchdiffeq:dopri5").run(field, x, ENDS, rtol=1e-6, atol=1e-8)
    ours = dopri5(field, x, ENDS, rtol=1e-6, atol=1e-8)
    assert torch.allclose(ours.samples, theirs.samples, atol=3e-6)
    assert ours.nfe.item() == pytest.approx(theirs.nfe.item(), rel=0.25)


@pytest.mark.parametrize("name", NAMES)
def test_the_error_follows_the_tolerance(name: str) -> None:
    field, x = mixture(name), noise(5)
    end = torch.tensor([0.0, field.interval[1]], dtype=torch.float64)
    for rtol in (1e-3, 1e-5, 1e-7):
        result = dopri5(field, x, end, rtol=rtol, atol=rtol / 100)
        kept = field.cdf(result.samples, float(end[1])) - field.cdf(x, 0.0)
        assert kept.abs().max() < 5 * rtol


def test_labels_stay_with_their_samples_when_others_have_arrived() -> None:
    def net(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return y[:, None] + 0 * x - x * x * x / 4

    x, labels = spread_out(), torch.arange(6)
    prior = FlowPrior(net, Cubic.interpolant)
    together = dopri5(prior.given(labels), x, ENDS).samples
    for row in range(6):
        alone = dopri5(prior.given(labels[row : row + 1]), x[row : row + 1], ENDS)
        assert torch.equal(alone.samples[0], together[row])


def test_a_straight_flow_takes_few_steps_and_is_exact() -> None:
    # One Gaussian as narrow as the noise, with GVP: x_t = α m + x0.
    result = dopri5(gaussian("gvp", mean=0.5, std=1.0), noise(3), ENDS)
    assert torch.allclose(result.samples, 0.5 + noise(3), atol=1e-4)
    assert result.nfe.max() <= 2 + 6 * 5


def test_backwards_in_time_returns_to_the_noise() -> None:
    field, x = mixture("linear"), noise(4)
    there = dopri5(field, x, ENDS, rtol=1e-8, atol=1e-10).samples
    back = dopri5(field, there, ENDS.flip(0), rtol=1e-8, atol=1e-10)
    assert torch.allclose(back.samples, x, atol=1e-6)
    assert back.finished.all()


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf])
def test_a_sample_without_a_finite_velocity_is_given_up_at_once_and_is_nan(wrong: float) -> None:
    def net(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return torch.where(y[:, None] == 1, wrong, -x * x * x / 4)

    x, labels = spread_out(), torch.tensor([0, 0, 1, 0, 0, 0])
    result = dopri5(FlowPrior(net, Cubic.interpolant).given(labels), x, ENDS)
    assert result.samples.isfinite().all(1).tolist() == (labels == 0).tolist()
    assert result.finished.tolist() == (labels == 0).tolist()
    assert int(result.nfe[2]) <= 8


def test_a_sample_that_needs_too_much_is_given_up_alone() -> None:
    x = spread_out()
    free = dopri5(Cubic(), x, ENDS)
    most = int(free.nfe.median())
    result = dopri5(Cubic(), x, ENDS, max_nfe=most)
    assert result.finished.tolist() == (free.nfe <= most).tolist()
    assert torch.equal(result.samples[result.finished], free.samples[result.finished])
    assert result.nfe.max() <= most


def test_a_sample_that_is_not_finite_spoils_no_other() -> None:
    x = spread_out()
    x[2, 5] = torch.nan
    result = dopri5(Cubic(), x, ENDS)
    assert result.finished.tolist() == [True, True, False, True, True, True]
    keep = [0, 1, 3, 4, 5]
    assert torch.equal(result.samples[keep], dopri5(Cubic(), x[keep], ENDS).samples)
