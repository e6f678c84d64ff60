"""Sampling as one call: time grids, budgets, what is refused, and the data that comes out."""

from __future__ import annotations

import pytest
import torch
from exact_flows import NAMES, gaussian, mixture, noise

from lit_restore.diffusion.guidance import Guidance
from lit_restore.diffusion.noise import sample_generators, standard_normal
from lit_restore.diffusion.predictions import PREDICTIONS
from lit_restore.diffusion.prior import FlowPrior
from lit_restore.diffusion.sampler import SamplerOptions, sample, times_of
from lit_restore.diffusion.schedules import TimeGrid, steps_for
from lit_restore.diffusion.solvers import SOLVERS, solver_named
from lit_restore.errors import UserError


def prior(name: str = "gvp", prediction: str = "velocity") -> FlowPrior:
    target = mixture(name)
    return FlowPrior(lambda x, t: target.exact(prediction, x, t), target.interpolant, prediction)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("solver", [*SOLVERS, "torchdiffeq:dopri5"])
def test_every_solver_of_every_prior_reaches_the_data(
    name: str, prediction: str, solver: str
) -> None:
    options = SamplerOptions(solver=solver, **({} if "dopri5" in solver else {"nfe": 60}))
    generators = sample_generators(0, range(10), "steps")
    result = sample(prior(name, prediction), noise(10, size=80), options=options,
                    generators=generators)  # fmt: skip
    mean, variance = mixture(name).moments()
    assert result.finished.all()
    assert result.samples.mean().item() == pytest.approx(mean, abs=0.12)
    assert result.samples.var().item() == pytest.approx(variance, rel=0.2)
    assert result.nfe.max() <= (60 if "dopri5" not in solver else 1000)


def test_what_it_cost_is_counted_apart() -> None:
    target = gaussian("linear")
    guided = FlowPrior(lambda x, t, y: target.velocity(x, t), target.interpolant,
                       guidance=Guidance(scale=2.0, interval=(0.5, 1.0)), null_label=1)  # fmt: skip
    options = SamplerOptions(solver="euler", steps=10)
    for _ in range(2):
        result = sample(guided, noise(3), torch.zeros(3, dtype=torch.int64), options)
        assert result.nfe.tolist() == [10, 10, 10]
        # Five of the ten times, 0.5 to 0.9, are guided.
        assert (result.network_calls, result.network_rows) == (10, 45)


def test_no_gradients_are_kept() -> None:
    x = noise(2).requires_grad_()
    assert not sample(prior(), x).samples.requires_grad


@pytest.mark.parametrize("spacing", ["uniform", "shifted", "cosine", "logit_normal"])
def test_grids_rise_from_end_to_end(spacing: str) -> None:
    times = TimeGrid(spacing=spacing).times(20, (1e-3, 1.0))
    assert (times.diff() > 0).all()
    assert (len(times), times[0].item(), times[-1].item()) == (21, 1e-3, 1.0)
    symmetric = torch.allclose(times + times.flip(0), torch.full_like(times, 1.001))
    assert symmetric == (spacing != "shifted")


def test_grids_by_hand() -> None:
    # In noise time s = 1 − u the shift is 3 s/(1 + 2 s): at s = ½ it is ¾.
    assert TimeGrid(spacing="shifted").times(2)[1].item() == pytest.approx(1 / 4)
    assert TimeGrid(spacing="shifted", shift=1.0).times(4).tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert TimeGrid(spacing="cosine").times(3)[1].item() == pytest.approx(1 / 4)


def test_times_keep_away_from_where_there_is_no_velocity() -> None:
    def ends(name: str, prediction: str, **options: object) -> list[float]:
        times = times_of(SamplerOptions(**options), prior(name, prediction).given())
        return times[[0, -2, -1]].tolist() if len(times) > 2 else times.tolist()

    assert ends("gvp", "velocity", solver="dopri5") == [0, 1]
    assert ends("gvp", "noise", solver="dopri5") == [1e-3, 1 - 1e-3]
    assert ends("gvp", "noise", solver="heun", steps=1) == [1e-3, 1]
    assert ends("vp", "velocity", solver="dopri5") == [0, 1 - 1e-3]
    assert ends("linear", "velocity", solver="sde_euler") == pytest.approx([0, 0.96, 1])
    sde = {"solver": "sde_euler", "diffusion": "interpolant", "last_step_size": 0.1}
    assert ends("linear", "velocity", **sde) == pytest.approx([1e-3, 0.9, 1])


def test_budgets_are_kept_and_used_up() -> None:
    costs = {"euler": 1, "heun": 2, "midpoint": 2, "dpmpp": 1, "torchdiffeq:rk4": 4}
    for name, cost in costs.items():
        assert steps_for(50, solver_named(name)) == 50 // cost
    # Heun's step to the data and the last of an SDE's cost one.
    assert steps_for(51, SOLVERS["sde_heun"]) == 26
    assert steps_for(51, SOLVERS["heun"]) == 26
    assert steps_for(1, SOLVERS["heun"]) == 1
    with pytest.raises(UserError, match="nfe: 1 is not enough for one step"):
        steps_for(1, SOLVERS["midpoint"])
    with pytest.raises(UserError, match="no fixed cost"):
        steps_for(50, solver_named("torchdiffeq:explicit_adams"))


REFUSED = {
    "sampler.solver": {"solver": "ddim"},
    "sampler.nfe": {"nfe": 10, "steps": 5},
    "sampler.rtol": {"rtol": 1e-3},
    "sampler.steps": {"solver": "dopri5", "steps": 5},
    "sampler.grid": {"solver": "torchdiffeq:dopri5", "grid": TimeGrid()},
    "sampler.diffusion": {"solver": "sde_euler", "diffusion": "none"},
    "sampler.diffusion_scale": {"solver": "sde_euler", "diffusion_scale": -1.0},
    "sampler.last_step": {"solver": "heun", "last_step": "mean"},
    "sampler.last_step_size": {"solver": "sde_heun", "last_step_size": 0.0},
    "sampler.atol": {"solver": "dopri5", "atol": 0.0},
}


@pytest.mark.parametrize("where", REFUSED)
def test_options_that_are_wrong_or_would_be_ignored_are_refused(where: str) -> None:
    with pytest.raises(UserError) as caught:
        SamplerOptions(**REFUSED[where])
    assert caught.value.where == where


def test_grid_options_that_would_be_ignored_are_refused() -> None:
    with pytest.raises(UserError, match=r"grid\.shift"):
        TimeGrid(shift=2.0)
    with pytest.raises(UserError, match=r"grid\.spacing"):
        TimeGrid(spacing="karras")  # type: ignore[arg-type]


def test_an_sde_needs_generators() -> None:
    with pytest.raises(UserError, match="generators"):
        sample(prior(), noise(2), options=SamplerOptions(solver="sde_euler"))


def test_noise_is_a_samples_own() -> None:
    shape = (4, 8, 8)
    together = standard_normal(shape, sample_generators(3, range(6), "noise"))
    alone = standard_normal(shape, sample_generators(3, [4], "noise"))
    assert torch.equal(alone, together[4:5])
    assert together.dtype == torch.float32
    assert together.std().item() == pytest.approx(1, abs=0.1)
    assert not torch.equal(together[0], together[1])
