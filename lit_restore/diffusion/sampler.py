"""Prior → solver → result: sampling as one call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from lit_restore.diffusion.interpolants import Interpolant
from lit_restore.diffusion.predictions import NEAR_END
from lit_restore.diffusion.prior import Field, FlowPrior
from lit_restore.diffusion.result import Result
from lit_restore.diffusion.schedules import TimeGrid, steps_for
from lit_restore.diffusion.solvers import Solver, solver_named
from lit_restore.diffusion.solvers.sde import DIFFUSIONS, LAST_STEPS, Diffusion, LastStep
from lit_restore.errors import UserError, require_choice

_DEFAULT_NFE = 50


@dataclass(frozen=True, kw_only=True)
class SamplerOptions:
    """How samples are made. An option that the solver has no use for is refused."""

    solver: str = "heun"
    """euler, heun, midpoint, dpmpp, dpmpp_2m, dopri5 (steps of each sample its own), sde_euler,
    sde_heun, or torchdiffeq:METHOD (an adaptive one couples the samples of a batch)."""
    nfe: int | None = None
    """Evaluations per sample at most (50 if neither it nor steps is given); not for adaptive."""
    steps: int | None = None
    """Steps, instead of nfe."""
    grid: TimeGrid | None = None
    """How the steps are spaced, uniform if not given; not for adaptive solvers."""
    rtol: float | None = None
    """Adaptive solvers: relative tolerance, 1e-3 if not given."""
    atol: float | None = None
    """Adaptive solvers: absolute tolerance, 1e-6 if not given."""
    diffusion: Diffusion | None = None
    """SDE solvers: how much noise is added when; sigma if not given."""
    diffusion_scale: float | None = None
    """SDE solvers: factor on it, 1 if not given; 0 is the ODE."""
    last_step: LastStep | None = None
    """SDE solvers: the last step, without noise: mean (if not given), tweedie or euler."""
    last_step_size: float | None = None
    """SDE solvers: how much of time it takes, 0.04 (SiT's) if not given."""

    def __post_init__(self) -> None:
        solver = solver_named(self.solver, where="sampler.solver")
        for option in self._useless(solver):
            raise UserError(f"{self.solver} has no use for it", where=f"sampler.{option}")
        if self.nfe is not None and self.steps is not None:
            raise UserError("give nfe or steps, not both", where="sampler.nfe")
        if self.diffusion is not None:
            require_choice(self.diffusion, DIFFUSIONS, where="sampler.diffusion")
        if self.last_step is not None:
            require_choice(self.last_step, LAST_STEPS, where="sampler.last_step")
        self._check_numbers()
        if solver.kind != "adaptive":
            self.number_of_steps(solver)

    def number_of_steps(self, solver: Solver) -> int:
        """Steps of a solver that is not adaptive.

        Raises:
            UserError: nfe is too small for one, or steps is.
        """
        if self.steps is not None:
            if self.steps < 1:
                raise UserError(f"{self.steps} is below 1", where="sampler.steps")
            return self.steps
        return steps_for(self.nfe or _DEFAULT_NFE, solver, where="sampler.nfe")

    def _useless(self, solver: Solver) -> list[str]:
        """The options given that belong to another kind of solver."""
        groups = {
            "fixed": ("nfe", "steps", "grid"),
            "adaptive": ("rtol", "atol"),
            "sde": ("diffusion", "diffusion_scale", "last_step", "last_step_size"),
        }
        mine = {*groups[solver.kind], *(groups["fixed"] if solver.kind == "sde" else ())}
        options = [option for group in groups.values() for option in group]
        return [o for o in options if o not in mine and getattr(self, o) is not None]

    def _check_numbers(self) -> None:
        for option in ("nfe", "rtol", "atol"):
            value = getattr(self, option)
            if value is not None and not value > 0:
                raise UserError(f"{value} is not positive", where=f"sampler.{option}")
        if self.diffusion_scale is not None and not self.diffusion_scale >= 0:
            raise UserError(f"{self.diffusion_scale} is negative", where="sampler.diffusion_scale")
        if self.last_step_size is not None and not 0 < self.last_step_size < 1:
            raise UserError("lies between 0 and 1", where="sampler.last_step_size")


def sample(
    prior: FlowPrior,
    x: Tensor,
    labels: Tensor | None = None,
    options: SamplerOptions = SamplerOptions(),  # noqa: B008
    *,
    generators: Sequence[torch.Generator] | None = None,
) -> Result:
    """Carry noise to data, without gradients.

    Args:
        prior: the network and how it is to be read.
        x: standard normal noise (B, …), from `noise.standard_normal`; the state keeps its type.
        labels: (B,) int64; none for a network without them.
        options: which solver, and its options.
        generators: SDE solvers: one per sample, on any device, for the noise of the steps.

    Returns:
        Samples of the type of `x`, and what they cost.

    Raises:
        UserError: an SDE solver without generators; guidance without labels.
    """
    solver = solver_named(options.solver, where="sampler.solver")
    field = prior.given(labels)
    calls, rows = prior.network_calls, prior.network_rows
    with torch.no_grad():
        result = _bound(solver, options, generators)(field, x, times_of(options, field))
    return Result(
        samples=result.samples,
        nfe=result.nfe,
        finished=result.finished,
        network_calls=prior.network_calls - calls,
        network_rows=prior.network_rows - rows,
    )


def times_of(options: SamplerOptions, field: Field) -> Tensor:
    """The times that `sample` hands to the solver, (n + 1,) float64.

    From 0 to 1, unless the field has no velocity at 0, or none at 1 and the solver asks for it
    there: then from or to the nearest time that has one.
    """
    solver = solver_named(options.solver, where="sampler.solver")
    low, high = field.interval
    high = high if solver.asks_at_the_end else 1.0
    if solver.kind == "adaptive":
        return torch.tensor([low, high], dtype=torch.float64)
    grid, steps = options.grid or TimeGrid(), options.number_of_steps(solver)
    if solver.kind == "fixed":
        return grid.times(steps, (low, high))
    if _infinite_at_noise(options, field.interpolant):
        low = max(low, NEAR_END)
    last = 0.04 if options.last_step_size is None else options.last_step_size
    end = torch.ones(1, dtype=torch.float64)
    if steps == 1:
        return torch.cat([end * low, end])
    return torch.cat([grid.times(steps - 1, (low, 1 - last)), end])


def _infinite_at_noise(options: SamplerOptions, interpolant: Interpolant) -> bool:
    return options.diffusion == "interpolant" and interpolant.starts_from_noise


def _bound(
    solver: Solver, options: SamplerOptions, generators: Sequence[torch.Generator] | None
) -> partial[Result]:
    """The solver with its own options filled in."""
    if solver.kind == "fixed":
        return partial(solver.run)
    if solver.kind == "adaptive":
        rtol, atol = options.rtol or 1e-3, options.atol or 1e-6
        return partial(solver.run, rtol=rtol, atol=atol)
    if generators is None:
        raise UserError("an SDE solver needs one per sample", where="generators")
    return partial(
        solver.run,
        generators=generators,
        diffusion=options.diffusion or "sigma",
        scale=1.0 if options.diffusion_scale is None else options.diffusion_scale,
        last_step=options.last_step or "mean",
    )
