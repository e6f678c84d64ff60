"""Guidance: schedules by hand, and Bayes' rule on classes whose posterior is known."""

from __future__ import annotations

import math

import pytest
import torch
from exact_flows import Mixture, gaussian, mixture, noise
from torch import Tensor

from lit_restore.diffusion.guidance import Guidance
from lit_restore.diffusion.interpolants import interpolant_named
from lit_restore.diffusion.prior import FlowPrior
from lit_restore.errors import UserError

CLASSES = mixture("gvp")
NULL = 2
LABELS = torch.tensor([0, 1, 1, 0])
TIMES = torch.tensor([0.1, 0.4, 0.6, 0.9], dtype=torch.float64)


def conditional(label: int) -> Mixture:
    return gaussian("gvp", CLASSES.means[label], CLASSES.stds[label])


def net(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
    """Velocity of one component given its label, of the mixture given the null label."""
    fields = [conditional(0), conditional(1), CLASSES]
    every = torch.stack([field.velocity(x, t) for field in fields])
    return every[y, torch.arange(len(x))]


def prior(**options: object) -> FlowPrior:
    guidance = Guidance(**options)  # type: ignore[arg-type]
    return FlowPrior(net, CLASSES.interpolant, guidance=guidance, null_label=NULL)


def test_power_cosines_by_hand() -> None:
    t = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    middle = 1 + 2.8 * (1 - math.cos(math.pi / 16)) / 2
    data = Guidance(scale=3.8, schedule="power_cosine_data").at(t)
    assert data.tolist() == pytest.approx([1, middle, 3.8], rel=1e-12)
    reverse = Guidance(scale=3.8, schedule="power_cosine_noise").at(t)
    assert reverse.tolist() == pytest.approx([3.8, middle, 1], rel=1e-12)
    straight = Guidance(scale=3.8, schedule="power_cosine_data", power=1.0).at(t)
    assert straight.tolist() == pytest.approx([1, 2.4, 3.8], rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_interval_guides_only_inside_both_ends_included(dtype: torch.dtype) -> None:
    t = torch.tensor([0.0, 0.29, 0.3, 0.5, 0.7, 0.71, 1.0], dtype=torch.float64).to(dtype)
    scale = Guidance(scale=2.0, interval=(0.3, 0.7)).at(t)
    assert scale.tolist() == [1, 1, 2, 2, 2, 1, 1]


@pytest.mark.parametrize("scale", [-0.5, 0.0, 0.5, 1.0, 1.4, 4.0])
def test_the_guided_score_adds_the_gradient_of_the_log_posterior(scale: float) -> None:
    # ∇ log p(c | x) = score_c − score_u, here by differentiating the posterior itself.
    x = noise(4, size=1).requires_grad_()
    share = CLASSES.parts(x, TIMES)[-1][:, 0]
    (gradient,) = torch.autograd.grad(share[torch.arange(4), LABELS].log().sum(), x)
    expected = CLASSES.score(x, TIMES) + scale * gradient
    got = prior(scale=scale).score(x, TIMES, LABELS)
    assert torch.allclose(got, expected, rtol=1e-8, atol=1e-9)


def test_scale_one_is_the_conditional_and_zero_the_unconditional_model_exactly() -> None:
    x = noise(4)
    one, zero = prior(scale=1.0), prior(scale=0.0)
    assert torch.equal(one.velocity(x, TIMES, LABELS), net(x, TIMES, LABELS))
    assert torch.equal(zero.velocity(x, TIMES, LABELS), net(x, TIMES, torch.full((4,), NULL)))
    assert (one.network_calls, one.network_rows) == (1, 4)


def test_outside_the_interval_only_the_conditional_model_is_evaluated() -> None:
    x, guided = noise(4), prior(scale=3.0, interval=(0.3, 0.7))
    got = guided.velocity(x, TIMES, LABELS)
    with_label, without = net(x, TIMES, LABELS), net(x, TIMES, torch.full((4,), NULL))
    inside = torch.tensor([False, True, True, False])[:, None]
    expected = torch.where(inside, without + 3 * (with_label - without), with_label)
    assert torch.allclose(got, expected, rtol=1e-12)
    assert (guided.network_calls, guided.network_rows) == (1, 6)


def test_one_doubled_call_and_two_calls_agree() -> None:
    x, one, two = noise(4), prior(scale=2.0), prior(scale=2.0, batched=False)
    both = [p.velocity(x, TIMES, LABELS) for p in (one, two)]
    assert torch.allclose(*both, rtol=1e-12)
    assert (one.network_calls, two.network_calls) == (1, 2)
    assert one.network_rows == two.network_rows == 8


def test_wrong_options_are_refused() -> None:
    with pytest.raises(UserError, match=r"guidance\.schedule: 'linear' is not one of"):
        Guidance(schedule="linear")  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"guidance\.interval"):
        Guidance(interval=(0.7, 0.3))
    with pytest.raises(UserError, match=r"guidance\.power: only"):
        Guidance(power=2.0)
    with pytest.raises(UserError, match=r"guidance\.scale"):
        Guidance(scale=math.nan)
    with pytest.raises(UserError, match="null label"):
        FlowPrior(net, interpolant_named("gvp"), guidance=Guidance())
    with pytest.raises(UserError, match="labels"):
        prior(scale=2.0).velocity(noise(4), TIMES)
