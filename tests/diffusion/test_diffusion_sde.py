"""SDE solvers: the same marginals for every diffusion, and noise that is a sample's own."""

from __future__ import annotations

import pytest
import torch
from exact_flows import gaussian, mixture, noise
from torch import Tensor

from lit_restore.diffusion.noise import sample_generators
from lit_restore.diffusion.solvers import euler, euler_maruyama, solver_named
from lit_restore.diffusion.solvers.sde import DIFFUSIONS, LAST_STEPS


def grid(steps: int, low: float = 0.0, last: float = 0.01) -> Tensor:
    times = torch.linspace(low, 1 - last, steps, dtype=torch.float64)
    return torch.cat([times, torch.ones(1, dtype=torch.float64)])


def moments_hold(samples: Tensor, mean: float, variance: float, bias: float) -> None:
    """Mean and variance of the elements within 4 standard errors and the steps' bias."""
    count = samples.numel()
    assert samples.mean().item() == pytest.approx(mean, abs=4 * (variance / count) ** 0.5 + bias)
    # No smaller than the standard error, as the mixture's kurtosis is below a Gaussian's.
    error = variance * (2 / count) ** 0.5
    assert samples.var().item() == pytest.approx(variance, abs=4 * error + bias)


def reaches_the_moments(
    solver: str, diffusion: str, size: int = 400, steps: int = 120, last: float = 0.01
) -> None:
    field = mixture("linear")
    times = grid(steps, 1e-2 if diffusion == "interpolant" else 0.0, last)
    result = solver_named(solver).run(
        field, noise(16, size=size), times,
        generators=sample_generators(0, range(16), "steps"), diffusion=diffusion,
    )  # fmt: skip
    moments_hold(result.samples, *field.moments(), bias=0.01)
    assert result.nfe.tolist() == [steps if solver == "sde_euler" else 2 * steps - 1] * 16


@pytest.mark.parametrize("diffusion", DIFFUSIONS)
def test_every_diffusion_has_the_targets_moments(diffusion: str) -> None:
    reaches_the_moments("sde_euler", diffusion)


def test_heuns_sde_has_the_targets_moments() -> None:
    reaches_the_moments("sde_heun", "sigma")


@pytest.mark.slow
@pytest.mark.parametrize("solver", ["sde_euler", "sde_heun"])
@pytest.mark.parametrize("diffusion", DIFFUSIONS)
def test_moments_of_many_samples(solver: str, diffusion: str) -> None:
    reaches_the_moments(solver, diffusion, size=3000, steps=300, last=2e-3)


@pytest.mark.parametrize("name", ["gvp", "vp"])
@pytest.mark.parametrize("last_step", LAST_STEPS)
def test_every_last_step_ends_at_the_target(name: str, last_step: str) -> None:
    field = mixture(name)
    result = euler_maruyama(
        field, noise(16, size=400), grid(120, last=4e-3), last_step=last_step,
        generators=sample_generators(1, range(16), "steps"),
    )  # fmt: skip
    moments_hold(result.samples, *field.moments(), bias=0.015)


def test_without_noise_it_is_the_ode() -> None:
    field, x = mixture("gvp"), noise(3)
    generators = sample_generators(0, range(3), "steps")
    result = euler_maruyama(field, x, grid(20), generators=generators, scale=0.0, last_step="euler")
    assert torch.allclose(result.samples, euler(field, x, grid(20)).samples, rtol=1e-12)


def test_tweedies_last_step_is_the_data_prediction() -> None:
    field, x = gaussian("linear"), noise(2)
    times = torch.tensor([0.96, 1.0], dtype=torch.float64)
    result = euler_maruyama(
        field, x, times, generators=sample_generators(0, range(2), "s"), last_step="tweedie"
    )
    assert torch.allclose(result.samples, field.data(x, times[:1].expand(2)), rtol=1e-12)


@pytest.mark.parametrize("solver", ["sde_euler", "sde_heun"])
def test_a_sample_does_not_depend_on_its_batch(solver: str) -> None:
    field, x = mixture("linear"), noise(5)
    run = solver_named(solver).run
    together = run(field, x, grid(10), generators=sample_generators(7, range(5), "s"))
    alone = run(field, x[3:4], grid(10), generators=sample_generators(7, [3], "s"))
    assert torch.allclose(alone.samples, together.samples[3:4], rtol=1e-12)
    others = run(field, x, grid(10), generators=sample_generators(8, range(5), "s"))
    assert not torch.allclose(others.samples, together.samples, rtol=1e-3)
