"""Interpolants: derivatives, end points and the identities that the rest relies on."""

from __future__ import annotations

import pytest
import torch
from exact_flows import NAMES

from lit_restore.diffusion.interpolants import INTERPOLANTS, VP, interpolant_named
from lit_restore.errors import UserError

TIMES = torch.linspace(0.01, 0.99, 25, dtype=torch.float64)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("function", ["alpha", "sigma"])
def test_derivatives_are_those_of_the_functions(name: str, function: str) -> None:
    interpolant = interpolant_named(name)
    t = TIMES.clone().requires_grad_()
    (slope,) = torch.autograd.grad(getattr(interpolant, function)(t).sum(), t)
    assert torch.allclose(getattr(interpolant, f"d_{function}")(TIMES), slope, rtol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", NAMES)
def test_data_is_reached_exactly_and_noise_where_it_is_said_to_be(
    name: str, dtype: torch.dtype
) -> None:
    interpolant = interpolant_named(name)
    ends = torch.tensor([0.0, 1.0], dtype=dtype)
    alpha, sigma = interpolant.alpha(ends).tolist(), interpolant.sigma(ends).tolist()
    assert (alpha[1], sigma[1]) == (1, 0)
    assert (alpha[0] == 0) == interpolant.starts_from_noise
    assert sigma[0] == pytest.approx(1, abs=3e-5)
    steep = interpolant.d_sigma(ends)[1].isinf().item()
    assert steep == interpolant.steep_at_data


@pytest.mark.parametrize("name", ["gvp", "vp"])
def test_variance_is_preserved(name: str) -> None:
    interpolant = interpolant_named(name)
    total = interpolant.alpha(TIMES) ** 2 + interpolant.sigma(TIMES) ** 2
    assert torch.allclose(total, torch.ones_like(total), rtol=1e-13)


def test_vp_is_the_integral_of_its_beta() -> None:
    # d log α / dt = β(1 − t)/2, by the trapezoidal rule, which is exact for a linear β.
    vp = VP(beta_min=0.3, beta_max=7.0)
    t = torch.linspace(0, 1, 11, dtype=torch.float64)
    beta = 0.3 + (1 - t) * 6.7
    integral = torch.trapezoid(beta / 2, t)
    assert vp.alpha(t[:1]).log().item() == pytest.approx(-integral.item(), rel=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_identities_of_determinant_diffusivity_and_log_snr(name: str) -> None:
    interpolant = interpolant_named(name)
    t = TIMES.clone().requires_grad_()
    alpha, sigma = interpolant.alpha(TIMES), interpolant.sigma(TIMES)
    d_alpha, d_sigma = interpolant.d_alpha(TIMES), interpolant.d_sigma(TIMES)
    determinant = alpha * d_sigma - sigma * d_alpha
    diffusivity = d_alpha / alpha * sigma**2 - sigma * d_sigma
    assert torch.allclose(interpolant.determinant(TIMES), determinant, rtol=1e-11)
    assert torch.allclose(interpolant.diffusivity(TIMES), diffusivity, rtol=1e-11)
    (slope,) = torch.autograd.grad(interpolant.log_snr(t).sum(), t)
    assert torch.allclose(slope, -determinant / (alpha * sigma), rtol=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_velocity_is_the_derivative_of_the_mixture(name: str) -> None:
    interpolant = interpolant_named(name)
    generator = torch.Generator().manual_seed(0)
    x1, x0 = torch.randn(2, 3, 2, 2, 2, generator=generator, dtype=torch.float64)
    t = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)
    step = 1e-6
    quotient = (interpolant.mix(x1, x0, t + step) - interpolant.mix(x1, x0, t - step)) / (2 * step)
    assert torch.allclose(interpolant.velocity(x1, x0, t), quotient, atol=1e-7)


def test_unknown_names_and_constants_are_refused() -> None:
    with pytest.raises(UserError, match=r"interpolant: 'cubic' is not one of linear, gvp, vp"):
        interpolant_named("cubic")
    with pytest.raises(UserError, match="beta_max"):
        VP(beta_max=0.01)
    assert tuple(INTERPOLANTS) == NAMES
