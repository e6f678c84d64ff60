"""Losses: least at the exact prediction, and a weighting means the same for all predictions."""

from __future__ import annotations

import pytest
import torch
from exact_flows import NAMES, mixture
from torch import Tensor

from lit_restore.diffusion.interpolants import Interpolant, expand, interpolant_named
from lit_restore.diffusion.losses import WEIGHTINGS, flow_loss, loss_weight
from lit_restore.diffusion.predictions import PREDICTIONS, convert

TIMES = torch.tensor([0.05, 0.3, 0.5, 0.8, 0.95], dtype=torch.float64)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_the_exact_prediction_has_the_least_loss(
    name: str, prediction: str, weighting: str
) -> None:
    target = mixture(name)
    x1, x0 = target.draw(4000)
    t = torch.linspace(0.05, 0.95, 4000, dtype=torch.float64)
    x = target.interpolant.mix(x1, x0, t)
    noise = target.noise(x, t)

    def loss(output: Tensor) -> Tensor:
        options = {"prediction": prediction, "weighting": weighting}
        return flow_loss(output, x1, x0, t, target.interpolant, **options)

    def loss_of_noise(value: Tensor) -> Tensor:
        kinds = {"source": "noise", "target": prediction}
        return loss(convert(value, x, t, target.interpolant, **kinds))

    exact = loss(target.exact(prediction, x, t))
    for other in (noise + 0.3, noise - 0.3, 1.3 * noise, 0.7 * noise):
        excess = loss_of_noise(other) - exact
        assert excess.mean() > 3 * excess.std() / len(excess) ** 0.5


def meaning(
    weighting: str, interpolant: Interpolant, t: Tensor, delta: dict[str, Tensor]
) -> Tensor:
    """The loss (B,) that a weighting stands for, from the error of every form of a prediction."""
    squares = {kind: error.square().mean(1) for kind, error in delta.items()}
    if weighting == "velocity":
        return squares["velocity"]
    if weighting == "likelihood":
        return interpolant.diffusivity(t) * squares["score"]
    snr = (interpolant.alpha(t) / interpolant.sigma(t)) ** 2
    return snr.clamp(max=5) * squares["data"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("weighting", ["velocity", "likelihood", "min_snr"])
def test_a_weighting_is_one_loss_whatever_is_predicted(
    name: str, prediction: str, weighting: str
) -> None:
    interpolant = interpolant_named(name)
    generator = torch.Generator().manual_seed(0)
    x1, x0, output = torch.randn(3, 5, 4, generator=generator, dtype=torch.float64)
    x = interpolant.mix(x1, x0, TIMES)
    truth = {
        "velocity": interpolant.velocity(x1, x0, TIMES),
        "noise": x0,
        "data": x1,
        "score": -x0 / expand(interpolant.sigma(TIMES), x0),
    }
    delta = {
        kind: convert(output, x, TIMES, interpolant, source=prediction, target=kind) - value
        for kind, value in truth.items()
    }
    options = {"prediction": prediction, "weighting": weighting}
    loss = flow_loss(output, x1, x0, TIMES, interpolant, **options)
    assert torch.allclose(loss, meaning(weighting, interpolant, TIMES, delta), rtol=1e-8)


def test_weights_of_noise_on_straight_paths_by_hand() -> None:
    linear = interpolant_named("linear")
    assert torch.allclose(loss_weight(TIMES, linear, "noise", "velocity"), TIMES**-2)
    expected = 1 / (TIMES * (1 - TIMES))
    assert torch.allclose(loss_weight(TIMES, linear, "noise", "likelihood"), expected)
    assert torch.allclose(loss_weight(TIMES, linear, "score", "likelihood"), expected)
    assert torch.equal(loss_weight(TIMES, linear, "data", "none"), torch.ones_like(TIMES))


@pytest.mark.parametrize("prediction", ["velocity", "data"])
def test_min_snr_is_finite_at_both_ends(prediction: str) -> None:
    ends = torch.tensor([0.0, 1.0])
    assert loss_weight(ends, interpolant_named("gvp"), prediction, "min_snr").isfinite().all()


def test_half_precision_outputs_are_compared_in_the_datas_type() -> None:
    x1, x0 = torch.zeros(2, 1, 2, 2), torch.zeros(2, 1, 2, 2)
    output = torch.full((2, 1, 2, 2), 0.5, dtype=torch.bfloat16)
    loss = flow_loss(output, x1, x0, torch.tensor([0.2, 0.6]), interpolant_named("linear"))
    assert loss.dtype == torch.float32
    assert loss.tolist() == [0.25, 0.25]
