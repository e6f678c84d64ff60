"""Stochastic sampling: dX = (v + ε s) dt + √(2ε) dW has the same marginals for every ε(t) ≥ 0.

SiT (arXiv 2401.08740, §3.3; its w_t is 2ε). The last of the given steps is made without noise. The
noise of each sample comes from its own generator, so that a sample does not depend on its batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

from lit_restore.diffusion.interpolants import Interpolant
from lit_restore.diffusion.noise import standard_normal
from lit_restore.diffusion.predictions import Estimates
from lit_restore.diffusion.prior import Field
from lit_restore.diffusion.result import Result, result_of

Diffusion: TypeAlias = Literal[
    "constant", "sigma", "linear", "interpolant", "decreasing", "increasing_decreasing"
]
LastStep: TypeAlias = Literal["mean", "tweedie", "euler"]
LAST_STEPS: tuple[LastStep, ...] = get_args(LastStep)
"""mean: the drift of the SDE without its noise; tweedie: the data prediction; euler: the ODE's."""

DIFFUSIONS: dict[Diffusion, Callable[[Interpolant, Tensor], Tensor]] = {
    "constant": lambda interpolant, t: torch.ones_like(t),
    "sigma": lambda interpolant, t: interpolant.sigma(t),
    "linear": lambda interpolant, t: 1 - t,
    "interpolant": lambda interpolant, t: interpolant.diffusivity(t),
    "decreasing": lambda interpolant, t: 0.25 * (torch.cos(math.pi * t) + 1) ** 2,
    "increasing_decreasing": lambda interpolant, t: torch.sin(math.pi * t) ** 2,
}
"""Short name → ε(t), with SiT's factors. "interpolant" (SiT's SBDM) is the diffusion that the
interpolant itself stands for; it is infinite at t = 0 for linear and gvp."""


class _Walk:
    """The field and the choices of one run, which both solvers below share."""

    def __init__(
        self,
        field: Field,
        times: Tensor,
        generators: Sequence[torch.Generator],
        diffusion: Diffusion,
        scale: float,
    ) -> None:
        self.field = field
        self.generators = generators
        self.grid: list[float] = times.tolist()
        assert self.grid == sorted(self.grid), "noise is added forwards in time"
        rates = DIFFUSIONS[diffusion](field.interpolant, times.to("cpu", torch.float64))
        self.epsilon: list[float] = (scale * rates).tolist()

    def estimates(self, x: Tensor, step: int) -> Estimates:
        t = torch.full((len(x),), self.grid[step], dtype=x.dtype, device=x.device)
        return self.field(x, t)

    def drift(self, x: Tensor, step: int) -> Tensor:
        """The drift v + ε s, of one evaluation."""
        found = self.estimates(x, step)
        return found.velocity + self.epsilon[step] * found.score

    def size(self, step: int) -> float:
        return self.grid[step + 1] - self.grid[step]

    def shake(self, x: Tensor, step: int) -> Tensor:
        """The step's noise added: x + √(2 ε h) n."""
        assert len(self.generators) == len(x), (len(self.generators), len(x))
        noise = standard_normal(x.shape[1:], self.generators, device=x.device, dtype=x.dtype)
        return x + math.sqrt(2 * self.epsilon[step] * self.size(step)) * noise

    def last(self, x: Tensor, kind: LastStep) -> Tensor:
        """The step without noise."""
        step = len(self.grid) - 2
        if kind == "mean":
            return x + self.size(step) * self.drift(x, step)
        found = self.estimates(x, step)
        return found.data if kind == "tweedie" else x + self.size(step) * found.velocity


def euler_maruyama(
    field: Field,
    x: Tensor,
    times: Tensor,
    *,
    generators: Sequence[torch.Generator],
    diffusion: Diffusion = "sigma",
    scale: float = 1.0,
    last_step: LastStep = "mean",
) -> Result:
    """Euler–Maruyama: x ← x + h (v + ε s) + √(2 ε h) n, weak order 1, one evaluation a step.

    Args:
        field: what is followed.
        x: (B, …) at times[0].
        times: (n + 1,) float64, rising; the last step is `last_step`'s.
        generators: one per sample.
        diffusion: ε(t) up to `scale`.
        scale: its factor, ≥ 0; 0 is the ODE.
        last_step: see `LAST_STEPS`.
    """
    walk = _Walk(field, times, generators, diffusion, scale)
    steps = len(walk.grid) - 1
    for step in range(steps - 1):
        x = walk.shake(x + walk.size(step) * walk.drift(x, step), step)
    return result_of(walk.last(x, last_step), steps)


def stochastic_heun(
    field: Field,
    x: Tensor,
    times: Tensor,
    *,
    generators: Sequence[torch.Generator],
    diffusion: Diffusion = "sigma",
    scale: float = 1.0,
    last_step: LastStep = "mean",
) -> Result:
    """Heun's step of the drift from the state with the step's noise added: SiT's SDE Heun.

    x̂ = x + √(2 ε h) n; x ← x̂ + h/2 (d(x̂, t) + d(x̂ + h d(x̂, t), t + h)), d = v + ε s: weak order
    1, two evaluations a step. Arguments as `euler_maruyama`.
    """
    walk = _Walk(field, times, generators, diffusion, scale)
    steps = len(walk.grid) - 1
    for step in range(steps - 1):
        x = walk.shake(x, step)
        h, slope = walk.size(step), walk.drift(x, step)
        x = x + h / 2 * (slope + walk.drift(x + h * slope, step + 1))
    return result_of(walk.last(x, last_step), 2 * steps - 1)
