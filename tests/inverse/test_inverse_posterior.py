"""DP-IR's sampler on a Gaussian posterior, whose estimates have a closed form."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from lit_restore.diffusion.discrete import DiscreteDiffusion
from lit_restore.errors import UserError
from lit_restore.inverse import FusedPrior, PosteriorOptions, TiledEstimate, sample_posterior
from lit_restore.networks import FusionNet, UNet

MEAN, STD = 0.3, 0.1


class Exact:
    """E[x_0 | y, x_t] where p(x_0 | y) = N(MEAN, STD²); what it is asked is written down."""

    def __init__(self) -> None:
        self.diffusion = DiscreteDiffusion()
        self.asked: list[int] = []

    def __call__(self, x_t: Tensor, restored: Tensor, t: int) -> Tensor:
        self.asked.append(t)
        bar = float(self.diffusion.alpha_bar[t])
        gain = STD**2 * math.sqrt(bar) / (bar * STD**2 + 1 - bar)
        return restored + gain * (x_t - math.sqrt(bar) * restored)


def draw(options: PosteriorOptions, side: int = 300, prior: Exact | None = None) -> Tensor:
    restored = torch.full((1, 1, side, side), MEAN, dtype=torch.float64)
    generators = [torch.Generator().manual_seed(0)]
    return sample_posterior(prior or Exact(), restored, options, generators).samples


@pytest.mark.parametrize(
    ("variance", "tau", "std"),
    [
        ("beta", 5, 0.036), ("beta", 20, 0.078), ("beta", 50, 0.098), ("beta", 250, 0.101),
        ("posterior", 5, 0.031), ("posterior", 20, 0.074), ("posterior", 50, 0.093),
        ("posterior", 250, 0.096),
    ],
)  # fmt: skip
def test_recovered_deviation_grows_with_tau_as_computed(
    variance: str, tau: int, std: float
) -> None:
    """The numbers of another implementation; and the samples' of variances propagated by hand."""
    options = PosteriorOptions(tau=tau, variance=variance)  # type: ignore[arg-type]
    samples = draw(options)
    assert float(samples.mean()) == pytest.approx(MEAN, abs=2e-3)
    assert float(samples.std()) == pytest.approx(propagated(options), rel=0.01)
    assert propagated(options) == pytest.approx(std, rel=0.03)


def propagated(options: PosteriorOptions) -> float:
    """The samples' standard deviation: all is linear and Gaussian."""
    diffusion = DiscreteDiffusion()
    jump = diffusion.jump(diffusion.steps, options.tau, options.variance)
    spread = jump.variance + jump.xt**2
    for t in range(options.tau, 0, -1):
        bar = float(diffusion.alpha_bar[t])
        gain = STD**2 * math.sqrt(bar) / (bar * STD**2 + 1 - bar)
        step = diffusion.jump(t, t - 1, options.variance)
        spread = (step.x0 * gain + step.xt) ** 2 * spread + (step.variance if t > 1 else 0)
    return math.sqrt(spread)


@pytest.mark.parametrize(
    "options", [PosteriorOptions(tau=1000), PosteriorOptions(tau=1000, tail="ddim")]
)
def test_posterior_is_recovered_from_the_start_of_time(options: PosteriorOptions) -> None:
    samples = draw(options, side=100)
    assert float(samples.mean()) == pytest.approx(MEAN, abs=5e-3)
    assert float(samples.std()) == pytest.approx(STD, rel=0.03)


@pytest.mark.parametrize(
    ("options", "asked"),
    [
        (PosteriorOptions(tau=5), [5, 4, 3, 2, 1]),
        (PosteriorOptions(tau=250, steps=5, tail="ddim"), [250, 200, 150, 100, 50]),
        (PosteriorOptions(tau=3, steps=2), [3, 2]),
        (PosteriorOptions(tau=0), []),
    ],
)
def test_evaluations_are_counted_and_evenly_spaced(
    options: PosteriorOptions, asked: list[int]
) -> None:
    prior = Exact()
    restored = torch.full((1, 1, 4, 4), MEAN)
    found = sample_posterior(prior, restored, options, [torch.Generator().manual_seed(0)])
    assert prior.asked == asked
    assert found.nfe == len(asked)
    if not asked:
        assert torch.equal(found.samples, restored)


def test_a_start_of_ccdf_is_a_jump_from_noise_around_the_restored_image() -> None:
    """Section 3.4: eq. 11 with x_T ~ N(sqrt(bar_T) x, 1 - bar_T) and the posterior's variance."""
    diffusion, tau, x = DiscreteDiffusion(), 50, 0.6
    jump = diffusion.jump(1000, tau, "posterior")
    bar_end, bar = float(diffusion.alpha_bar[1000]), float(diffusion.alpha_bar[tau])
    assert jump.x0 * x + jump.xt * math.sqrt(bar_end) * x == pytest.approx(math.sqrt(bar) * x)
    assert jump.variance + jump.xt**2 * (1 - bar_end) == pytest.approx(1 - bar)
    ccdf = draw(PosteriorOptions(tau=tau, start="ccdf", variance="posterior"))
    jumped = draw(PosteriorOptions(tau=tau, variance="posterior"))
    assert float(ccdf.std()) == pytest.approx(float(jumped.std()), rel=0.01)


def test_a_sample_depends_on_its_own_generator_alone() -> None:
    prior, restored = Exact(), torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(1))

    def sampled(rows: list[int]) -> Tensor:
        generators = [torch.Generator().manual_seed(k) for k in rows]
        return sample_posterior(prior, restored[rows], PosteriorOptions(tau=9), generators).samples

    assert torch.equal(sampled([0, 1, 2])[[2, 0]], sampled([2, 0]))


@pytest.mark.parametrize(
    ("options", "where"),
    [
        ({"tau": -1}, "tau"), ({"tau": 5, "steps": 6}, "steps"), ({"eta": 0.5}, "eta"),
        ({"tail": "ddim", "eta": 2.0}, "eta"), ({"variance": "none"}, "variance"),
    ],
)  # fmt: skip
def test_impossible_options_are_refused(options: dict[str, object], where: str) -> None:
    with pytest.raises(UserError) as error:
        PosteriorOptions(**options)  # type: ignore[arg-type]
    assert error.value.where == where
    with pytest.raises(UserError, match="above the schedule"):
        draw(PosteriorOptions(tau=1001), side=2)


class Denoiser(nn.Module):
    """Keeps what it is given; knows the law of its noise."""

    multiple = 1

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.levels: list[float] = []

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        self.levels.append(float(sigma[0]))
        out: Tensor = self.conv(x)
        return out


def fused() -> tuple[FusedPrior, Denoiser]:
    torch.manual_seed(0)
    denoiser = Denoiser()
    net = FusionNet(width=4, growth=2, num_convs=2, time_dim=4, time_hidden=4)
    return FusedPrior(DiscreteDiffusion(), denoiser, net), denoiser


def test_denoiser_gets_the_clean_image_and_noise_of_the_level_it_is_told() -> None:
    prior, denoiser = fused()
    diffusion = prior.diffusion
    seen: dict[str, Tensor] = {}
    denoiser.register_forward_pre_hook(lambda module, args: seen.update(x=args[0]))
    x0 = torch.full((1, 3, 200, 200), 0.4)
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([100])
    prior.denoised(diffusion.diffuse(x0, t, noise), t)
    assert float(seen["x"].mean()) == pytest.approx(0.4, abs=2e-3)
    assert float(seen["x"].std()) == pytest.approx(float(diffusion.sigma(100)), rel=0.01)
    assert denoiser.levels == pytest.approx([float(diffusion.sigma(100))])


def test_estimates_to_compare_leave_out_the_other_networks() -> None:
    x, restored = torch.rand(1, 3, 8, 8), torch.rand(1, 3, 8, 8)
    prior, denoiser = fused()
    prior.estimate = "restored"
    assert torch.equal(prior(x, restored, 5), restored)
    assert not denoiser.levels
    prior.estimate = "denoised"
    assert torch.equal(prior(x, restored, 5), prior.denoised(x, torch.tensor([5])))


def test_tiles_are_the_whole_where_networks_look_no_further_than_the_overlap() -> None:
    """The noise field is the image's, so the whole trajectory agrees."""
    prior, _ = fused()
    generator = torch.Generator().manual_seed(0)
    restored = torch.rand(1, 3, 70, 90, generator=generator)
    tiles = TiledEstimate(prior, tile=48, overlap=32)
    results = [
        sample_posterior(p, restored, PosteriorOptions(tau=3), [torch.Generator().manual_seed(7)])
        for p in (prior, tiles)
    ]
    torch.testing.assert_close(results[1].samples, results[0].samples, rtol=1e-5, atol=1e-5)


def test_tiles_begin_in_phase_with_the_networks_coarser_grids() -> None:
    """Odd sides and tiles: networks with strides of 4 and 2 see the image's own grids."""
    torch.manual_seed(0)
    denoiser = UNet(widths=(4, 4), depths=(1, 1))
    fusion = FusionNet(width=4, growth=2, num_convs=2, time_dim=4, time_hidden=4, unshuffle=2)
    for net in (denoiser, fusion):
        for parameter in net.parameters():
            parameter.data.add_(0.05 * torch.randn(parameter.shape))
    prior = FusedPrior(DiscreteDiffusion(), denoiser, fusion)
    restored = torch.rand(1, 3, 301, 277)
    multiple = math.lcm(denoiser.multiple, fusion.multiple)
    tiles = TiledEstimate(prior, tile=255, overlap=219, multiple=multiple)
    assert (tiles.tile, tiles.overlap) == (256, 220)
    results = [
        sample_posterior(p, restored, PosteriorOptions(tau=2), [torch.Generator().manual_seed(7)])
        for p in (prior, tiles)
    ]
    torch.testing.assert_close(results[1].samples, results[0].samples, rtol=1e-5, atol=1e-5)
