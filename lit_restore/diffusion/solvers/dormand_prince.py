"""Dormand–Prince 5(4) with the steps of every sample its own.

Hairer, Nørsett and Wanner, Solving Ordinary Differential Equations I, §II.4 and table II.5.2. A
sample's steps follow from its own error alone: what else is in the batch changes neither its
result nor its cost, and a sample that has arrived costs nothing more. Control is plain Python
floats and norms are summed in a fixed order, so that this holds to the last bit wherever the field
itself computes a sample the same in any batch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lit_restore.diffusion.interpolants import expand
from lit_restore.diffusion.prior import Field
from lit_restore.diffusion.result import Result

_NODES = (1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)
_STAGES = (
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
_FOURTH = (5179 / 57600, 0.0, 7571 / 16695, 393 / 640, -92097 / 339200, 187 / 2100, 1 / 40)
_ERROR = tuple(a - b for a, b in zip((*_STAGES[-1], 0.0), _FOURTH, strict=True))

_SAFETY, _SHRINK, _GROW = 0.9, 0.2, 10.0
_BETA = 0.04
"""Weight of the previous error in the step size (PI control)."""


@dataclass
class _Control:
    """Where one sample is, and how it chooses its next step."""

    row: int
    t: float
    end: float
    h: float = 0.0
    previous: float = 1e-4
    nfe: int = 0
    rejected: bool = False
    arrived: bool = False

    def aim(self) -> None:
        """Shorten the step so that it does not pass the end."""
        if abs(self.h) >= abs(self.end - self.t):
            self.h = self.end - self.t

    def judge(self, error: float) -> bool:
        """Whether the step just tried is taken; moves on if so, and sets the next step size."""
        if not error <= 1:
            factor = error ** (0.75 * _BETA - 0.2) if math.isfinite(error) else 0.0
            self.h *= max(_SHRINK, _SAFETY * factor)
            self.rejected = True
            return False
        self.arrived = self.h == self.end - self.t
        self.t += self.h
        factor = max(error, 1e-10) ** (0.75 * _BETA - 0.2) * self.previous**_BETA
        most = 1.0 if self.rejected else _GROW
        self.h *= min(most, max(_SHRINK, _SAFETY * factor))
        self.previous, self.rejected = max(error, 1e-4), False
        return True

    def stuck(self, max_nfe: int) -> bool:
        """Whether it cannot go on: out of evaluations, or its step none or too small to move."""
        still = math.isnan(self.h) or self.t + 1e-3 * self.h == self.t
        return not self.arrived and (self.nfe + 6 > max_nfe or still)


def dopri5(
    field: Field,
    x: Tensor,
    times: Tensor,
    *,
    rtol: float = 1e-3,
    atol: float = 1e-6,
    max_nfe: int = 1000,
) -> Result:
    """Order 5 with step control, for each sample alone; six evaluations a step, two to begin with.

    A step is taken if the root mean square, over the sample's elements, of its estimated error over
    (atol + rtol · max(|x|, |x_new|)) is at most 1.

    Args:
        field: what is followed.
        x: (B, …) at times[0].
        times: (n + 1,); only the first and the last count, in either direction.
        rtol: relative tolerance; DiMSUM's and SiT's value is 1e-3.
        atol: absolute tolerance; theirs is 1e-6.
        max_nfe: a sample that would need more evaluations is given up, unfinished. One whose first
            velocity is not finite is given up at once, and is NaN: it must not pass for a sample.
    """
    out = x.clone()
    walkers = [_Control(row, float(times[0]), float(times[-1])) for row in range(len(x))]
    everyone = list(walkers)
    slope = _velocity(field, x, [w.t for w in walkers])
    x = x + 0 * slope  # NaN where the slope is not finite
    _first_steps(field, x, slope, walkers, rtol, atol)
    while walkers:
        for walker in walkers:
            walker.aim()
        new, error, new_slope = _step(field, x, slope, walkers)
        scale = atol + rtol * torch.maximum(x.abs(), new.abs())
        taken = [w.judge(e) for w, e in zip(walkers, _norms(error / scale), strict=True)]
        mask = expand(torch.tensor(taken, device=x.device), x).bool()
        x, slope = torch.where(mask, new, x), torch.where(mask, new_slope, slope)
        stays = [k for k, w in enumerate(walkers) if not (w.arrived or w.stuck(max_nfe))]
        if len(stays) < len(walkers):
            out[[w.row for w in walkers]] = x
            rows = torch.tensor(stays, dtype=torch.int64, device=x.device)
            x, slope, field = x[rows], slope[rows], field.take(rows)
            walkers = [walkers[k] for k in stays]
    return Result(
        samples=out,
        nfe=torch.tensor([w.nfe for w in everyone]),
        finished=torch.tensor([w.arrived for w in everyone]),
    )


def _velocity(field: Field, x: Tensor, times: list[float]) -> Tensor:
    t = torch.tensor(times, dtype=torch.float64).to(x.device, x.dtype)
    return field(x, t).velocity


def _step(
    field: Field, x: Tensor, slope: Tensor, walkers: list[_Control]
) -> tuple[Tensor, Tensor, Tensor]:
    """The fifth-order step, its difference from the fourth-order one, and the slope at its end."""
    h = expand(torch.tensor([w.h for w in walkers], dtype=torch.float64).to(x), x)
    slopes = [slope]
    state = x
    for node, weights in zip(_NODES, _STAGES, strict=True):
        state = x + h * _combine(weights, slopes)
        slopes.append(_velocity(field, state, [w.t + node * w.h for w in walkers]))
    for walker in walkers:
        walker.nfe += 6
    return state, h * _combine(_ERROR, slopes), slopes[-1]


def _combine(weights: tuple[float, ...], slopes: list[Tensor]) -> Tensor:
    terms = [w * k for w, k in zip(weights, slopes, strict=True) if w]
    return sum(terms[1:], terms[0])


def _first_steps(
    field: Field,
    x: Tensor,
    slope: Tensor,
    walkers: list[_Control],
    rtol: float,
    atol: float,
) -> None:
    """Hairer's guess of the first step (§II.4): one explicit Euler step shows the curvature."""
    scale = atol + rtol * x.abs()
    sizes, slopes = _norms(x / scale), _norms(slope / scale)
    pairs = zip(sizes, slopes, strict=True)
    trials = [1e-6 if min(a, b) < 1e-5 else 0.01 * a / b for a, b in pairs]
    for walker, trial in zip(walkers, trials, strict=True):
        span = walker.end - walker.t
        walker.h = math.copysign(min(trial, abs(span)), span)
    h = expand(torch.tensor([w.h for w in walkers], dtype=torch.float64).to(x), x)
    ahead = _velocity(field, x + h * slope, [w.t + w.h for w in walkers])
    bends = _norms((ahead - slope) / scale)
    for walker, b, c in zip(walkers, slopes, bends, strict=True):
        trial = abs(walker.h)
        steepest = max(b, c / trial) if trial else 0.0
        guess = (0.01 / steepest) ** 0.2 if steepest > 1e-15 else max(1e-6, 1e-3 * trial)
        walker.h = math.copysign(min(100 * trial, guess), walker.h)
        walker.nfe += 2


def _norms(x: Tensor) -> list[float]:
    """Root mean square of each row; halves are added, so that a row's sum knows no other row."""
    squares = x.flatten(1).square()
    count = squares.shape[1]
    while squares.shape[1] > 1:
        if squares.shape[1] % 2:
            squares = torch.nn.functional.pad(squares, (0, 1))
        half = squares.shape[1] // 2
        squares = squares[:, :half] + squares[:, half:]
    return [math.sqrt(total / count) for total in squares[:, 0].tolist()]
