"""Time grids: where the steps of a solver lie."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

from lit_restore.diffusion.solvers import Solver
from lit_restore.diffusion.times import TimeDistribution
from lit_restore.errors import UserError, require_choice

Spacing: TypeAlias = Literal["uniform", "shifted", "cosine", "logit_normal"]


@dataclass(frozen=True, kw_only=True)
class TimeGrid:
    """How the steps are spaced."""

    spacing: Spacing = "uniform"
    """uniform; shifted: t = u/(u + shift (1 − u)), denser at the noise for shift above 1 (arXiv
    2403.03206, eq. 23, in the time that runs from noise to data); cosine: (1 − cos πu)/2, denser at
    both ends; logit_normal: the quantiles of that distribution, denser in the middle."""
    shift: float | None = None
    """shifted: its factor, 3 if not given."""

    def __post_init__(self) -> None:
        require_choice(self.spacing, get_args(Spacing), where="grid.spacing")
        if self.shift is not None and self.spacing != "shifted":
            raise UserError("only shifted has it", where="grid.shift")
        if self.shift is not None and not self.shift > 0:
            raise UserError(f"{self.shift} is not positive", where="grid.shift")

    def times(self, steps: int, within: tuple[float, float] = (0.0, 1.0)) -> Tensor:
        """`steps` + 1 rising times in float64, the first and last being exactly `within`."""
        assert steps > 0, steps
        low, high = within
        u = self._spaced(torch.linspace(0, 1, steps + 1, dtype=torch.float64))
        times = low + (high - low) * u
        times[0], times[-1] = low, high
        return times

    def _spaced(self, u: Tensor) -> Tensor:
        if self.spacing == "shifted":
            return u / (u + (3.0 if self.shift is None else self.shift) * (1 - u))
        if self.spacing == "cosine":
            return torch.sin(u * (torch.pi / 2)) ** 2
        if self.spacing == "logit_normal":
            return TimeDistribution(name="logit_normal").quantile(u)
        return u


def steps_for(nfe: int, solver: Solver, *, where: str = "nfe") -> int:
    """The most steps that cost at most `nfe` evaluations.

    Args:
        nfe: evaluations of the field per sample.
        solver: of a fixed number of evaluations a step.
        where: the option's name.

    Raises:
        UserError: not even one step fits, or the solver's steps have no fixed cost.
    """
    if solver.evaluations is None:
        raise UserError("this solver's steps have no fixed cost; give steps", where=where)
    saved = solver.evaluations - 1 if solver.one_at_the_end else 0
    steps = (nfe + saved) // solver.evaluations
    if steps < 1:
        raise UserError(
            f"{nfe} is not enough for one step, which needs {solver.evaluations - saved}",
            where=where,
        )
    return steps
