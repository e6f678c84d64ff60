"""Solvers of the ODE with given steps: their order, and cases in which they are exact."""

from __future__ import annotations

import math

import pytest
import torch
from exact_flows import NAMES, Mixture, gaussian, mixture, noise
from torch import Tensor

from lit_restore.diffusion.interpolants import Interpolant, interpolant_named
from lit_restore.diffusion.predictions import Estimates
from lit_restore.diffusion.solvers import SOLVERS, dpmpp, euler, heun, midpoint, solver_named
from lit_restore.errors import UserError

ORDERS = {
    "euler": 1, "heun": 2, "midpoint": 2, "dpmpp": 2, "dpmpp_2m": 2,
    "torchdiffeq:heun3": 3, "torchdiffeq:rk4": 4,
}  # fmt: skip


def times(steps: int, low: float = 0.0, high: float = 1.0) -> Tensor:
    return torch.linspace(low, high, steps + 1, dtype=torch.float64)


def error(field: Mixture, solver: str, grid: Tensor) -> float:
    """How far from its quantile, which the exact flow keeps, each element ends."""
    x = noise(8)
    samples = solver_named(solver).run(field, x, grid).samples
    low, high = float(grid[0]), float(grid[-1])
    return float((field.cdf(samples, high) - field.cdf(x, low)).abs().mean())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("solver", ORDERS)
def test_errors_fall_with_the_stated_order(name: str, solver: str) -> None:
    # VP has no velocity at t = 1, and DPM-Solver++ loses a logarithm there.
    high = 0.9 if name == "vp" or "dpmpp" in solver else 1.0
    counts = (100, 200) if ORDERS[solver] < 3 else (40, 80)
    coarse, fine = (error(mixture(name), solver, times(n, high=high)) for n in counts)
    assert math.log2(coarse / fine) == pytest.approx(ORDERS[solver], abs=0.35)
    assert fine < 5e-3


@pytest.mark.parametrize("name", ["linear", "gvp"])
def test_dpmpp_loses_a_logarithm_in_the_step_to_the_data(name: str) -> None:
    coarse, fine = (error(mixture(name), "dpmpp", times(n)) for n in (100, 400))
    expected = (math.log(400) / 400**2) / (math.log(100) / 100**2)
    assert fine / coarse == pytest.approx(expected, rel=0.6)


@pytest.mark.parametrize("solver", ["heun", "midpoint", "euler", "torchdiffeq:rk4"])
def test_going_back_undoes_going_forth(solver: str) -> None:
    field, x, grid = mixture("gvp"), noise(4), times(200)
    forth = solver_named(solver).run(field, x, grid).samples
    back = solver_named(solver).run(field, forth, grid.flip(0)).samples
    assert torch.allclose(back, x, atol=0.1 if solver == "euler" else 1e-3)


@pytest.mark.parametrize("solver", ["euler", "heun", "midpoint", "dpmpp"])
def test_nfe_is_what_the_field_was_asked(solver: str) -> None:
    field, asked = mixture("linear"), []

    class Counting(Mixture):
        def __call__(self, x: Tensor, t: Tensor) -> Estimates:
            asked.append(t)
            return field(x, t)

    result = SOLVERS[solver].run(Counting(field.interpolant), noise(3), times(7))
    assert result.nfe.tolist() == [len(asked)] * 3
    # Heun's step to the data is Euler's.
    assert len(asked) == 7 * SOLVERS[solver].evaluations - (solver == "heun")


class Told:
    """A field whose data prediction is a + b λ wherever x is; b = 0 is a single point of data."""

    interval = (1e-3, 1 - 1e-3)

    def __init__(self, interpolant: Interpolant, a: float, b: float) -> None:
        self.interpolant, self.a, self.b = interpolant, a, b

    def __call__(self, x: Tensor, t: Tensor) -> Estimates:
        slope = self.b * self.interpolant.log_snr(t)[:, None] if self.b else torch.zeros_like(x)
        return Estimates(self.a + slope + 0 * x, "data", x, t, self.interpolant)

    def take(self, rows: Tensor) -> Told:
        return self


@pytest.mark.parametrize("name", NAMES)
def test_dpmpp_is_exact_where_the_data_prediction_is_constant(name: str) -> None:
    field, x = Told(interpolant_named(name), 0.7, 0.0), noise(3)
    for high in (0.9, 1.0):
        end = torch.tensor(high, dtype=torch.float64)
        alphas, sigmas = field.interpolant.alpha(end), field.interpolant.sigma(end)
        start = torch.tensor(0.0, dtype=torch.float64)
        share = sigmas / field.interpolant.sigma(start)
        expected = share * x + (alphas - share * field.interpolant.alpha(start)) * 0.7
        assert torch.allclose(dpmpp(field, x, times(5, high=high)).samples, expected, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_dpmpp_is_exact_from_its_second_step_where_data_is_linear_in_log_snr(name: str) -> None:
    # x/σ grows by ∫ e^λ (a + b λ) dλ, whose antiderivative is e^λ (a + b (λ − 1)).
    field, x = Told(interpolant_named(name), 0.3, 0.2), noise(3)
    grid = torch.tensor([0.1, 0.25, 0.3, 0.6, 0.9], dtype=torch.float64)
    after_one = dpmpp(field, x, grid[:2]).samples
    lam, sigma = field.interpolant.log_snr(grid), field.interpolant.sigma(grid)
    whole = lam.exp() * (0.3 + 0.2 * (lam - 1))
    expected = sigma[-1] * (after_one / sigma[1] + whole[-1] - whole[1])
    assert torch.allclose(dpmpp(field, x, grid).samples, expected, rtol=1e-11)


@pytest.mark.parametrize("solver", [euler, heun])
def test_a_last_step_without_a_velocity_at_its_end_is_eulers(solver) -> None:
    # Of a data prediction, Euler's step to t = 1 on straight paths is that prediction.
    field, x = Told(interpolant_named("linear"), 0.7, 0.0), noise(3)
    result = solver(field, x, times(4, low=1e-3))
    assert torch.allclose(result.samples, torch.full_like(x, 0.7), atol=1e-12)
    assert result.nfe.tolist() == [4 if solver is euler else 7] * 3


@pytest.mark.parametrize("solver", [euler, heun, midpoint])
def test_no_noise_is_left_on_what_all_data_share(solver) -> None:
    """As a network has it: at t = 1 its velocity knows nothing of the noise any more."""

    class Learned(Told):
        interval = (0.0, 1.0)

        def __call__(self, x: Tensor, t: Tensor) -> Estimates:
            velocity = torch.where(t[:, None] < 1, (self.a - x) / (1 - t[:, None]), x)
            return Estimates(velocity, "velocity", x, t, self.interpolant)

    x = noise(3)
    found = solver(Learned(interpolant_named("linear"), 0.7, 0.0), x, times(10)).samples
    # Heun's correction at the data would leave 0.05 x, half of what there is at t = 0.9.
    assert torch.allclose(
        found, torch.full_like(x, 0.7), atol=1e-2 if solver is midpoint else 1e-12
    )


@pytest.mark.parametrize("solver", ["euler", "midpoint", "heun2"])
def test_torchdiffeq_with_the_same_method_is_the_same(solver: str) -> None:
    grid = torch.tensor([0.0, 0.1, 0.5, 0.9 if solver == "heun2" else 1.0]).double()
    field, x = mixture("linear"), noise(3)
    ours = SOLVERS[solver.replace("heun2", "heun")].run(field, x, grid)
    theirs = solver_named(f"torchdiffeq:{solver}").run(field, x, grid)
    assert torch.allclose(ours.samples, theirs.samples, rtol=1e-12)
    assert ours.nfe.tolist() == theirs.nfe.tolist()


def test_float32_states_stay_float32() -> None:
    x = noise(2).float()
    for name in ("euler", "heun", "midpoint", "dpmpp", "torchdiffeq:euler"):
        exact = gaussian("gvp")
        samples = solver_named(name).run(exact, x, times(50)).samples
        assert samples.dtype == torch.float32
        assert torch.allclose(samples, 0.7 + 0.4 * x, atol=0.03)


def test_unknown_solvers_are_refused() -> None:
    with pytest.raises(UserError, match=r"solver: 'ddim' is not one of euler, heun"):
        solver_named("ddim")
    with pytest.raises(UserError, match=r"solver: 'rk5' is not one of euler, midpoint, heun2"):
        solver_named("torchdiffeq:rk5")
