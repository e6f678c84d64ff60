"""Classifier-free guidance: how strongly the label is stressed, and when.

v = v_u + s(t) (v_c − v_u) (arXiv 2207.12598). All predictions are affine in each other with
factors of t alone, so guiding the network's own output is guiding the velocity; and every channel
is guided.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

from lit_restore.errors import UserError, require_choice

Schedule: TypeAlias = Literal["constant", "power_cosine_data", "power_cosine_noise"]
POWER = 4.0
"""Exponent of both power-cosine schedules where none is given."""


@dataclass(frozen=True, kw_only=True)
class Guidance:
    """The scale s(t) of guidance; s = 1 is the conditional, s = 0 the unconditional model."""

    scale: float = 1.4
    """s, at its largest. DiMSUM's reported figures have 1.4, its pictures 4."""
    schedule: Schedule = "constant"
    """constant; power_cosine_data: from 1 at the noise to `scale` at the data, as MDT has it (arXiv
    2303.14389); power_cosine_noise: the reverse, as DiMSUM's released code has it."""
    interval: tuple[float, float] = (0.0, 1.0)
    """Times (t = 0 noise, t = 1 data) between which it is guided, both included; outside of it s is
    1 and costs nothing (arXiv 2404.07724)."""
    power: float | None = None
    """Exponent of the power-cosine schedules, 4 if not given."""
    batched: bool = True
    """Both predictions in one call of the network on a doubled batch, or else in two calls, which
    need half the memory."""

    def __post_init__(self) -> None:
        require_choice(self.schedule, get_args(Schedule), where="guidance.schedule")
        low, high = self.interval
        if not 0 <= low < high <= 1:
            raise UserError(
                f"expects 0 <= low < high <= 1, got {low}, {high}", where="guidance.interval"
            )
        if not math.isfinite(self.scale):
            raise UserError(f"{self.scale} is not finite", where="guidance.scale")
        if self.power is not None and self.schedule == "constant":
            raise UserError("only the power-cosine schedules have it", where="guidance.power")
        if self.power is not None and not self.power > 0:
            raise UserError(f"{self.power} is not positive", where="guidance.power")

    def at(self, t: Tensor) -> Tensor:
        """The scale s at times (B,), of that shape."""
        scale = 1 + (self.scale - 1) * self._share(t)
        low, high = self.interval
        # In the type of t, so that a time given as the same number counts as the end.
        inside = (t >= t.new_tensor(low)) & (t <= t.new_tensor(high))
        return torch.where(inside, scale, torch.ones_like(scale))

    def _share(self, t: Tensor) -> Tensor:
        """How much of scale − 1 is added, in [0, 1]: (1 − cos(π uᵖ))/2."""
        if self.schedule == "constant":
            return torch.ones_like(t)
        u = t if self.schedule == "power_cosine_data" else 1 - t
        power = POWER if self.power is None else self.power
        return (1 - torch.cos(math.pi * u**power)) / 2
