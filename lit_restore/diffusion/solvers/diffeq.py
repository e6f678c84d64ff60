"""torchdiffeq's methods, as "torchdiffeq:METHOD": what SiT and DiMSUM sample with.

An adaptive method controls one step for the whole batch, so that samples and their cost depend on
what else is in it; `dopri5` of this package does not.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lit_restore.diffusion.prior import Field
from lit_restore.diffusion.result import Result, result_of

FIXED_METHODS: dict[str, int | None] = {
    "euler": 1,
    "midpoint": 2,
    "heun2": 2,
    "heun3": 3,
    "rk4": 4,
    "explicit_adams": None,
    "implicit_adams": None,
}
"""Method → evaluations a step; None where that changes from step to step."""
ADAPTIVE_METHODS = ("dopri5", "dopri8", "bosh3", "fehlberg2", "adaptive_heun")


def torchdiffeq_fixed(field: Field, x: Tensor, times: Tensor, *, method: str) -> Result:
    """Fixed steps at `times` (n + 1,) of one of `FIXED_METHODS`."""
    from torchdiffeq import odeint  # imports SciPy, which nothing else here needs

    follow = _Counted(field, len(x))
    grid = times.to(x.device, torch.float64)
    # The grid goes by this way because only the states at the times asked for are kept.
    options = {"grid_constructor": lambda func, y0, t: grid}
    path = odeint(follow, x, grid[[0, -1]], method=method, options=options)
    return result_of(path[-1], follow.nfe)


def torchdiffeq_adaptive(
    field: Field, x: Tensor, times: Tensor, *, method: str, rtol: float = 1e-3, atol: float = 1e-6
) -> Result:
    """Steps of one of `ADAPTIVE_METHODS`, the same for all samples; only the ends of `times` count.

    Its last step goes beyond the last time and is interpolated back: the field is asked there too,
    and answers with its nearest time.
    """
    from torchdiffeq import odeint

    follow = _Counted(field, len(x))
    ends = times.to(x.device, torch.float64)[[0, -1]]
    path = odeint(follow, x, ends, method=method, rtol=rtol, atol=atol)
    return result_of(path[-1], follow.nfe)


class _Counted:
    """The velocity as torchdiffeq calls it: f(t, x) with one time for all samples."""

    def __init__(self, field: Field, count: int) -> None:
        self.field = field
        self.count = count
        self.nfe = 0

    def __call__(self, t: Tensor, x: Tensor) -> Tensor:
        self.nfe += 1
        return self.field(x, t.to(x).expand(self.count)).velocity
