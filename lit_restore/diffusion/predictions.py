"""What a network predicts of x_t (velocity, noise, score or data), and each one from each other.

x_t = α x1 + σ x0 and velocity = α' x1 + σ' x0 are two linear equations in (x1, x0) of determinant
D = α σ' − σ α'; score = −x0/σ. Every prediction is an affine function of any other at the same
(x_t, t), so the same formulas convert samples and conditional expectations.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

from lit_restore.diffusion.interpolants import Interpolant, expand

Prediction: TypeAlias = Literal["velocity", "noise", "score", "data"]
PREDICTIONS: tuple[Prediction, ...] = get_args(Prediction)
"""velocity E[α' x1 + σ' x0 | x_t], noise E[x0 | x_t], score ∇ log p_t(x_t), data E[x1 | x_t]."""

NEAR_END = 1e-3
"""How near a singular end of time a conversion is used: SiT's `sample_eps`."""


def convert(
    value: Tensor,
    x: Tensor,
    t: Tensor,
    interpolant: Interpolant,
    *,
    source: Prediction,
    target: Prediction,
) -> Tensor:
    """One prediction as another, exactly: nothing is clamped.

    Divides by σ, and so is singular at t = 1: from data to any other; velocity and noise to score.
    Divides by α, and so is singular at t = 0 where α(0) = 0 (linear, gvp): noise and score to data
    and velocity. From velocity to noise and data it divides by D alone, which vanishes nowhere.
    With VP α', σ' and D are infinite at t = 1, and so is every conversion from or to velocity.
    At a singular point the result is not finite; `interval` says how near is still sensible.

    Args:
        value: the prediction, (B, …).
        x: x_t, (B, …).
        t: times in [0, 1], (B,) or a scalar.
        interpolant: α and σ.
        source: what `value` is.
        target: what is wanted.

    Returns:
        (B, …), in the type of `x`.
    """
    if source == target:
        return value
    pair = _Pair(x, t, interpolant)
    # Through the noise these two would divide by α as well.
    if source == "velocity" and target == "data":
        return (pair("d_sigma") * x - pair("sigma") * value) / pair("determinant")
    if source == "data" and target == "velocity":
        return (pair("d_sigma") * x - pair("determinant") * value) / pair("sigma")
    return _FROM_NOISE[target](_TO_NOISE[source](value, pair), pair)


@dataclass(frozen=True)
class _Pair:
    """x_t, and the interpolant's functions of its time by name, ready to multiply with it."""

    x: Tensor
    t: Tensor
    interpolant: Interpolant

    def __call__(self, function: str) -> Tensor:
        return expand(getattr(self.interpolant, function)(self.t), self.x)


_Step: TypeAlias = Callable[[Tensor, _Pair], Tensor]

_TO_NOISE: dict[Prediction, _Step] = {
    "noise": lambda value, p: value,
    "velocity": lambda v, p: (p("alpha") * v - p("d_alpha") * p.x) / p("determinant"),
    "score": lambda s, p: -p("sigma") * s,
    "data": lambda x1, p: (p.x - p("alpha") * x1) / p("sigma"),
}
_FROM_NOISE: dict[Prediction, _Step] = {
    "noise": lambda value, p: value,
    "velocity": lambda x0, p: (p("d_alpha") * p.x + p("determinant") * x0) / p("alpha"),
    "score": lambda x0, p: -x0 / p("sigma"),
    "data": lambda x0, p: (p.x - p("sigma") * x0) / p("alpha"),
}


def interval(
    interpolant: Interpolant, prediction: Prediction, *, eps: float = NEAR_END
) -> tuple[float, float]:
    """The times at which a network of this prediction is trained and asked for a velocity.

    SiT's rule (its `check_interval`): all of [0, 1] for velocity with linear and gvp; up to 1 − eps
    with vp, whose α(0) > 0; [eps, 1 − eps] for the other predictions with linear and gvp.
    """
    if interpolant.steep_at_data:
        return 0.0, 1.0 - eps
    return (0.0, 1.0) if prediction == "velocity" else (eps, 1.0 - eps)


@dataclass(frozen=True)
class Estimates:
    """What one evaluation of a network says of x_t, in all four forms, each (B, …)."""

    value: Tensor
    """The prediction itself."""
    prediction: Prediction
    """What it is of."""
    x: Tensor
    """x_t."""
    t: Tensor
    """The times (B,) it was made for."""
    interpolant: Interpolant
    """α and σ."""

    @property
    def velocity(self) -> Tensor:
        """E[α' x1 + σ' x0 | x_t]."""
        return self._as("velocity", self.t)

    @property
    def noise(self) -> Tensor:
        """E[x0 | x_t]."""
        return self._as("noise", self.t)

    @property
    def score(self) -> Tensor:
        """∇ log p_t(x_t); σ is taken no smaller than NEAR_END before the data."""
        last = torch.full_like(self.t, 1 - NEAR_END)
        return self._as("score", torch.minimum(self.t, last))

    @property
    def data(self) -> Tensor:
        """E[x1 | x_t]."""
        return self._as("data", self.t)

    def _as(self, target: Prediction, t: Tensor) -> Tensor:
        return convert(
            self.value, self.x, t, self.interpolant, source=self.prediction, target=target
        )
