"""Fixed steps of the probability-flow ODE dx/dt = velocity(x, t), in either direction of time.

Each takes a field, the state x (B, …) and times (n + 1,) in float64, and makes n steps.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from lit_restore.diffusion.prior import Field
from lit_restore.diffusion.result import Result, result_of


def velocity_at(field: Field, x: Tensor, t: float) -> Tensor:
    """The velocity of every sample at one time."""
    return field(x, torch.full((len(x),), t, dtype=x.dtype, device=x.device)).velocity


def euler(field: Field, x: Tensor, times: Tensor) -> Result:
    """Euler: x ← x + h v(x, t), order 1, one evaluation a step."""
    grid = times.tolist()
    for t, after in pairwise(grid):
        x = x + (after - t) * velocity_at(field, x, t)
    return result_of(x, len(grid) - 1)


def heun(field: Field, x: Tensor, times: Tensor) -> Result:
    """Heun: x ← x + h/2 (v(x, t) + v(x + h v, t + h)), order 2, two evaluations a step.

    The step to the data is Euler's (as the last one of Karras et al., arXiv 2206.00364, algorithm
    1), as is one to a time where the field has no velocity. The velocity at the data knows nothing
    of the noise that the step has just removed: corrected by it, half of that noise stays.
    """
    grid = times.tolist()
    low, high = field.interval
    nfe = 0
    for t, after in pairwise(grid):
        slope = velocity_at(field, x, t)
        ahead = x + (after - t) * slope
        nfe += 1
        if low <= after <= high and after != 1:
            ahead = x + (after - t) / 2 * (slope + velocity_at(field, ahead, after))
            nfe += 1
        x = ahead
    return result_of(x, nfe)


def midpoint(field: Field, x: Tensor, times: Tensor) -> Result:
    """Midpoint: x ← x + h v(x + h/2 v(x, t), t + h/2), order 2, two evaluations a step."""
    grid = times.tolist()
    for t, after in pairwise(grid):
        h = after - t
        half = x + h / 2 * velocity_at(field, x, t)
        x = x + h * velocity_at(field, half, t + h / 2)
    return result_of(x, 2 * (len(grid) - 1))
