"""DPM-Solver++(2M): two-step exponential integrator of the data prediction, in λ = log(α/σ).

Lu et al., arXiv 2211.01095: with y = x/σ and D(λ) the data prediction along the path,
d(x/σ)/dλ = e^λ D, so that x_t = (σ_t/σ_s) x_s + σ_t ∫ e^λ D(λ) dλ from λ_s to λ_t. Here D is taken
as the straight line in λ through the last two evaluations, and its integral is exact, or, as in
the paper's algorithm 2, that of the slope is taken as h/2 times that of the constant.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lit_restore.diffusion.interpolants import Interpolant
from lit_restore.diffusion.prior import Field
from lit_restore.diffusion.result import Result, result_of


@dataclass(frozen=True)
class _Point:
    """The interpolant at one time."""

    alpha: float
    sigma: float
    log_snr: float


def dpmpp(field: Field, x: Tensor, times: Tensor, *, exact: bool = True) -> Result:
    """Second order, one evaluation of the data prediction a step.

    The first step is of first order; so is a step from or to an infinite λ (t = 0 where α is 0,
    t = 1): there is no slope in λ, and the step to t = 1 returns the last data prediction. With
    n steps uniform in t up to t = 1 the error is of the order of log(n)/n².

    Args:
        field: what is followed.
        x: (B, …) at times[0].
        times: (n + 1,) float64, rising or falling; only the last may be t = 1.
        exact: the slope's integral exactly; False: the paper's, which is also of second order.
    """
    points = _points(field.interpolant, times)
    before: tuple[float, Tensor] | None = None
    for t, here, after in zip(times.tolist(), points, points[1:], strict=False):
        data = field(x, torch.full((len(x),), t, dtype=x.dtype, device=x.device)).data
        ratio = after.sigma / here.sigma
        h = after.log_snr - here.log_snr
        step = ratio * x + (after.alpha - ratio * here.alpha) * data
        if before is not None and math.isfinite(h):
            slope = (data - before[1]) / (here.log_snr - before[0])
            # ∫₀ʰ e^(u − h) u du, or h/2 times ∫₀ʰ e^(u − h) du
            weight = h + math.expm1(-h) if exact else -h / 2 * math.expm1(-h)
            step = step + after.alpha * weight * slope
        x = step
        before = (here.log_snr, data) if math.isfinite(here.log_snr) else None
    return result_of(x, len(points) - 1)


def _points(interpolant: Interpolant, times: Tensor) -> list[_Point]:
    t = times.to("cpu", torch.float64)
    columns = (interpolant.alpha(t), interpolant.sigma(t), interpolant.log_snr(t))
    points = [_Point(*row) for row in zip(*(c.tolist() for c in columns), strict=True)]
    assert all(point.sigma > 0 for point in points[:-1]), "only the last time may be t = 1"
    return points
