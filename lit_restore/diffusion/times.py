"""Which times are trained on: uniform or logit-normal, one draw of one generator per sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lit_restore.diffusion.interpolants import Interpolant
from lit_restore.diffusion.predictions import Prediction, interval
from lit_restore.errors import UserError, require_choice


@dataclass(frozen=True, kw_only=True)
class TimeDistribution:
    """The distribution of training times before they are scaled into their interval."""

    name: Literal["uniform", "logit_normal"] = "uniform"
    """uniform, or logit_normal: the logistic function of a normal variable (arXiv 2403.03206,
    §3.1), which visits the middle of the path more often."""
    mean: float | None = None
    """logit_normal: mean of the normal variable, 0 if not given. Below 0 is nearer the noise;
    DiMSUM's option is -0.5."""
    std: float | None = None
    """logit_normal: its standard deviation, 1 if not given."""

    def __post_init__(self) -> None:
        require_choice(self.name, ("uniform", "logit_normal"), where="times.name")
        for option in ("mean", "std"):
            if self.name == "uniform" and getattr(self, option) is not None:
                raise UserError("only logit_normal has it", where=f"times.{option}")
        if self.std is not None and not self.std > 0:
            raise UserError(f"{self.std} is not positive", where="times.std")

    def quantile(self, u: Tensor) -> Tensor:
        """The time below which a share `u` of the draws lies; rises from 0 to 1 with u."""
        if self.name == "uniform":
            return u
        mean, std = self.mean or 0.0, 1.0 if self.std is None else self.std
        return torch.sigmoid(mean + std * torch.special.ndtri(u))


def draw_times(
    distribution: TimeDistribution,
    generators: Sequence[torch.Generator],
    within: tuple[float, float] = (0.0, 1.0),
) -> Tensor:
    """One time per sample, from its own generator.

    Args:
        distribution: of the times in [0, 1].
        generators: one per sample (`seeding.torch_generator(seed, position, "time")`).
        within: the interval the draws are scaled into, from `training_interval`.

    Returns:
        (B,) float32 on the CPU; the same for a sample whatever else is in the batch.
    """
    draws = [torch.rand((), generator=g, device=g.device, dtype=torch.float64) for g in generators]
    return _scaled(distribution.quantile(torch.stack(draws).cpu()), within)


def stratified_times(
    distribution: TimeDistribution, count: int, within: tuple[float, float] = (0.0, 1.0)
) -> Tensor:
    """The quantiles (k + ½)/count: the same times at every validation, (count,) float32."""
    shares = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    return _scaled(distribution.quantile(shares), within)


def training_interval(
    interpolant: Interpolant, prediction: Prediction, weighting: str = "none"
) -> tuple[float, float]:
    """The times trained on: where the prediction, and the weight of its loss, are finite.

    SiT's `train_eps`: 1e-3 with linear and gvp, 1e-5 with vp, and none for a velocity with linear
    and gvp. A velocity's "likelihood" weight, which SiT does not have, is infinite at the data, and
    keeps 1e-3 away from it.
    """
    low, high = interval(interpolant, prediction, eps=1e-5 if interpolant.steep_at_data else 1e-3)
    return low, min(high, 1 - 1e-3) if weighting == "likelihood" else high


def _scaled(t: Tensor, within: tuple[float, float]) -> Tensor:
    low, high = within
    return (low + (high - low) * t).float()
