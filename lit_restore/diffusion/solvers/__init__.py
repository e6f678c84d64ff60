"""Solvers: functions of (field, x, times), listed in `SOLVERS` by short name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

from lit_restore.diffusion.result import Result
from lit_restore.diffusion.solvers.diffeq import (
    ADAPTIVE_METHODS,
    FIXED_METHODS,
    torchdiffeq_adaptive,
    torchdiffeq_fixed,
)
from lit_restore.diffusion.solvers.dormand_prince import dopri5
from lit_restore.diffusion.solvers.dpmpp import dpmpp
from lit_restore.diffusion.solvers.runge_kutta import euler, heun, midpoint
from lit_restore.diffusion.solvers.sde import euler_maruyama, stochastic_heun
from lit_restore.errors import require_choice

__all__ = [
    "SOLVERS", "Solver", "dopri5", "dpmpp", "euler", "euler_maruyama", "heun", "midpoint",
    "solver_named", "stochastic_heun", "torchdiffeq_adaptive", "torchdiffeq_fixed",
]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Solver:
    """A solver, and what the sampler must know of it."""

    run: Callable[..., Result]
    """(field, x, times), and of an sde `generators`, `diffusion`, `scale` and `last_step`, of an
    adaptive one `rtol` and `atol`."""
    kind: Literal["fixed", "adaptive", "sde"]
    """fixed: a step per pair of times; sde: the same, with noise; adaptive: steps of its own."""
    evaluations: int | None = None
    """Of the field a step; None for steps of its own or of changing cost."""
    one_at_the_end: bool = False
    """Whether the step to the data costs one evaluation, whatever the others do."""
    asks_at_the_end: bool = False
    """Whether the velocity at the last time is asked for, which must then exist."""


SOLVERS: dict[str, Solver] = {
    "euler": Solver(run=euler, kind="fixed", evaluations=1),
    "heun": Solver(run=heun, kind="fixed", evaluations=2, one_at_the_end=True),
    "midpoint": Solver(run=midpoint, kind="fixed", evaluations=2),
    "dpmpp": Solver(run=dpmpp, kind="fixed", evaluations=1),
    "dpmpp_2m": Solver(run=partial(dpmpp, exact=False), kind="fixed", evaluations=1),
    "dopri5": Solver(run=dopri5, kind="adaptive", asks_at_the_end=True),
    "sde_euler": Solver(run=euler_maruyama, kind="sde", evaluations=1, one_at_the_end=True),
    "sde_heun": Solver(run=stochastic_heun, kind="sde", evaluations=2, one_at_the_end=True),
}
"""Short name → solver; `solver_named` also knows torchdiffeq's."""

_PREFIX = "torchdiffeq:"


def solver_named(name: str, *, where: str = "solver") -> Solver:
    """One of `SOLVERS`, or "torchdiffeq:METHOD".

    Raises:
        UserError: there is no such solver or method; names the option `where`.
    """
    if not name.startswith(_PREFIX):
        return SOLVERS[require_choice(name, SOLVERS, where=where)]
    method = name.removeprefix(_PREFIX)
    require_choice(method, [*FIXED_METHODS, *ADAPTIVE_METHODS], where=where)
    if method in ADAPTIVE_METHODS:
        run = partial(torchdiffeq_adaptive, method=method)
        return Solver(run=run, kind="adaptive", asks_at_the_end=True)
    return Solver(
        run=partial(torchdiffeq_fixed, method=method),
        kind="fixed",
        evaluations=FIXED_METHODS[method],
        asks_at_the_end=method != "euler",
    )
