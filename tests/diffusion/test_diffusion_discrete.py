"""Jumps of the discrete diffusion: composition, closed forms, DP-IR's numbers."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from lit_restore.diffusion.discrete import VARIANCES, DiscreteDiffusion, Variance
from lit_restore.errors import UserError

DDPM = DiscreteDiffusion()


@pytest.mark.parametrize(
    ("tau", "x0", "xt", "variance"),
    [(5, 0.999650, 4.44e-6, 8.317e-4), (250, 0.723911, 4.18e-3, 0.477488)],
)
def test_jump_from_the_end_has_the_papers_numbers(
    tau: int, x0: float, xt: float, variance: float
) -> None:
    """Evaluated independently from the sums of the paper's eq. 9 and 10."""
    jump = DDPM.jump(1000, tau, "beta")
    assert jump.x0 == pytest.approx(x0, abs=5e-7)
    assert jump.xt == pytest.approx(xt, rel=2e-3)
    assert jump.variance == pytest.approx(variance, rel=1e-4)


@pytest.mark.parametrize(("tau", "ratio"), [(5, 1.190), (50, 1.024), (100, 1.012), (250, 1.003)])
def test_variance_beta_leaves_more_noise_than_the_schedule(tau: int, ratio: float) -> None:
    own = 1 - float(DDPM.alpha_bar[tau])
    for variance, expected in (("beta", ratio), ("posterior", 1.0)):
        jump = DDPM.jump(1000, tau, variance)  # type: ignore[arg-type]
        assert (jump.variance + jump.xt**2) / own == pytest.approx(expected, abs=6e-4)


@pytest.mark.parametrize("variance", VARIANCES)
def test_jumps_compose(variance: Variance) -> None:
    """Any path of sub-jumps, x_0 held, is the one long jump."""
    draw = torch.Generator().manual_seed(0)
    for _ in range(20):
        path = torch.randperm(1001, generator=draw)[:6].sort(descending=True).values.tolist()
        x0, xt, spread = 0.0, 1.0, 0.0
        for t, s in pairwise(path):
            step = DDPM.jump(t, s, variance)
            x0, xt = step.x0 + step.xt * x0, step.xt * xt
            spread = step.variance + step.xt**2 * spread
        whole = DDPM.jump(path[0], path[-1], variance)
        assert (x0, xt, spread) == pytest.approx((whole.x0, whole.xt, whole.variance), rel=1e-9)


def test_one_step_is_ddpms_posterior() -> None:
    """Ho et al. 2020, eq. 7."""
    beta, bar = DDPM.beta, DDPM.alpha_bar
    for t in (2, 17, 1000):
        jump = DDPM.jump(t, t - 1, "posterior")
        assert jump.x0 == pytest.approx(float(bar[t - 1].sqrt() * beta[t] / (1 - bar[t])))
        assert jump.xt == pytest.approx(
            float((1 - beta[t]).sqrt() * (1 - bar[t - 1]) / (1 - bar[t]))
        )
        assert jump.variance == pytest.approx(float(beta[t] * (1 - bar[t - 1]) / (1 - bar[t])))
        assert DDPM.jump(t, t - 1, "beta").variance == pytest.approx(float(beta[t]))


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_steps_keep_the_marginal_where_x0_is_true(eta: float) -> None:
    """x_s = sqrt(bar_s) x_0 + sqrt(1 - bar_s) n again, after DDIM's steps and posterior jumps."""
    for t, s in ((1000, 400), (250, 5), (6, 5), (3, 0)):
        bar_t, bar_s = float(DDPM.alpha_bar[t]), float(DDPM.alpha_bar[s])
        steps = [DDPM.ddim(t, s, eta), DDPM.jump(t, s, "posterior")]
        for jump in steps:
            assert jump.x0 + jump.xt * math.sqrt(bar_t) == pytest.approx(math.sqrt(bar_s))
            spread = jump.variance + jump.xt**2 * (1 - bar_t)
            assert spread == pytest.approx(1 - bar_s, abs=1e-12)


def test_ddim_of_eta_one_is_a_posterior_jump() -> None:
    for t, s in ((1000, 999), (40, 3)):
        a, b = DDPM.ddim(t, s, 1.0), DDPM.jump(t, s, "posterior")
        assert (a.x0, a.xt, a.variance) == pytest.approx((b.x0, b.xt, b.variance))


def test_last_step_gives_the_estimate() -> None:
    for jump in (DDPM.jump(7, 0, "posterior"), DDPM.ddim(7, 0)):
        assert (jump.x0, jump.xt, jump.variance) == pytest.approx((1, 0, 0), abs=1e-12)


def test_index_counts_from_one_and_levels_are_the_papers() -> None:
    """244.3 of 255 is "timestep 250" of a paper that counts from 0."""
    assert float(DDPM.sigma(251)) * 255 == pytest.approx(244.2986, abs=1e-3)
    assert float(DDPM.sigma(1)) * 255 == pytest.approx(2.5501, abs=1e-3)
    assert float(DDPM.sigma(0)) == 0
    assert DDPM.index(244.29 / 255) == 251
    assert DDPM.index(1e9) == 1000
    assert DDPM.index(0.0) == 0


def test_diffuse_has_the_schedules_moments() -> None:
    x0 = torch.full((3, 1, 100, 100), 0.7, dtype=torch.float64)
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    t = torch.tensor([0, 100, 1000])
    x_t = DDPM.diffuse(x0, t, noise)
    assert torch.equal(x_t[0], x0[0])
    for k in (1, 2):
        bar = DDPM.alpha_bar[t[k]]
        assert float(x_t[k].mean()) == pytest.approx(float(0.7 * bar.sqrt()), abs=0.03)
        assert float(x_t[k].std()) == pytest.approx(float((1 - bar).sqrt()), rel=0.02)


@pytest.mark.parametrize(
    ("options", "where"),
    [({"steps": 0}, "steps"), ({"beta_min": 0.0}, "beta_max"), ({"beta_max": 1.0}, "beta_max"),
     ({"beta_min": 0.1, "beta_max": 0.01}, "beta_max")],
)  # fmt: skip
def test_impossible_schedules_are_refused(options: dict[str, float], where: str) -> None:
    with pytest.raises(UserError) as error:
        DiscreteDiffusion(**options)  # type: ignore[arg-type]
    assert error.value.where == where
