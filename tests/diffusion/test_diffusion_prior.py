"""Prior: a network of any prediction and precision as the same field."""

from __future__ import annotations

import pytest
import torch
from exact_flows import NAMES, mixture, noise
from torch import nn

from lit_restore.diffusion.interpolants import interpolant_named
from lit_restore.diffusion.predictions import PREDICTIONS
from lit_restore.diffusion.prior import FlowPrior
from lit_restore.errors import UserError


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_every_prediction_is_the_same_field(name: str, prediction: str) -> None:
    target = mixture(name)
    prior = FlowPrior(lambda x, t: target.exact(prediction, x, t), target.interpolant, prediction)
    x, t = noise(3), torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    for kind in PREDICTIONS:
        got = getattr(prior, kind)(x, t)
        assert torch.allclose(got, target.exact(kind, x, t), rtol=1e-9, atol=1e-10)
    assert prior.network_calls == 4


@pytest.mark.parametrize("prediction", ["noise", "score", "data"])
def test_the_velocity_at_the_ends_is_that_of_the_nearest_good_time(prediction: str) -> None:
    target = mixture("linear")
    prior = FlowPrior(lambda x, t: target.exact(prediction, x, t), target.interpolant, prediction)
    x = noise(3)
    for end in (0.0, 1.0):
        got = prior.velocity(x, torch.full((3,), end))
        exact = target.velocity(x, torch.full((3,), end, dtype=torch.float64))
        assert torch.allclose(got, exact, rtol=0.02, atol=0.02)


def test_estimates_under_autocast_keep_the_states_type() -> None:
    linear = nn.Linear(6, 6)
    prior = FlowPrior(lambda x, t: linear(x), interpolant_named("gvp"))
    x = noise(2).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert linear(x).dtype == torch.bfloat16
        estimates = prior.estimates(x, torch.tensor(0.3))
    assert all(getattr(estimates, kind).dtype == torch.float32 for kind in PREDICTIONS)


def test_labels_go_with_the_rows_taken() -> None:
    prior = FlowPrior(lambda x, t, y: x * 0 + y[:, None], interpolant_named("linear"))
    field = prior.given(torch.tensor([5, 6, 7])).take(torch.tensor([2, 0]))
    got = field(noise(2), torch.zeros(2)).value
    assert got[:, 0].tolist() == [7, 5]


def test_an_unknown_prediction_is_refused() -> None:
    with pytest.raises(UserError, match="prediction: 'eps' is not one of velocity"):
        FlowPrior(nn.Identity(), interpolant_named("gvp"), "eps")  # type: ignore[arg-type]
