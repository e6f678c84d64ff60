"""Averages: what they converge to, and how fast they forget."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from lit_restore.callbacks.ema import EMAProfile, make_twin, power_exponent
from lit_restore.errors import UserError


def average(profile: EMAProfile, values: list[float], batch: int) -> float:
    total = 0.0
    for step, value in enumerate(values, start=1):
        decay = profile.decay(step * batch, batch)
        total = decay * total + (1 - decay) * value
    return total


def test_after_one_half_life_a_weight_counts_half() -> None:
    profile = EMAProfile(half_life=1000)
    seen = 100_000  # past the warm-up
    kept = np.prod([profile.decay(seen + 10 * k, 10) for k in range(100)])
    assert kept == pytest.approx(0.5, rel=1e-12)


def test_an_average_of_a_constant_is_that_constant_whatever_the_start() -> None:
    for profile in (EMAProfile(half_life=500), EMAProfile(sigma_rel=0.1)):
        assert average(profile, [3.0] * 2000, 10) == pytest.approx(3.0, rel=1e-6)


def test_the_power_function_average_has_the_relative_width_asked_for() -> None:
    # EDM2 eq. 123: the weight of time t is proportional to t^gamma; its standard deviation over
    # the run's length is sigma_rel.
    for sigma_rel in (0.05, 0.10, 0.20):
        profile = EMAProfile(sigma_rel=sigma_rel)
        steps = 4000
        weights = np.zeros(steps)
        for step in range(1, steps + 1):
            decay = profile.decay(step * 8, 8)
            weights *= decay
            weights[step - 1] = 1 - decay
        times = np.arange(1, steps + 1) / steps
        mean = (weights * times).sum()
        std = np.sqrt((weights * (times - mean) ** 2).sum())
        assert std == pytest.approx(sigma_rel, rel=5e-3)


def test_the_exponent_of_the_paper() -> None:
    # EDM2, section 3: sigma_rel 0.05 and 0.10 are gamma 16.97 and 6.94.
    assert power_exponent(0.05) == pytest.approx(16.97, abs=5e-3)
    assert power_exponent(0.10) == pytest.approx(6.94, abs=5e-3)


def test_a_half_precision_network_has_a_float32_twin() -> None:
    twin = make_twin(nn.Linear(2, 2).to(torch.bfloat16))
    assert {p.dtype for p in twin.parameters()} == {torch.float32}
    assert not any(p.requires_grad for p in twin.parameters())


@pytest.mark.parametrize("options", [{}, {"half_life": 1, "sigma_rel": 0.1}, {"half_life": 0}])
def test_a_profile_says_one_thing(options: dict[str, float]) -> None:
    with pytest.raises(UserError, match=r"ema\.profiles"):
        EMAProfile(**options)  # type: ignore[arg-type]
