"""Exponential moving averages of the weights, in images, as float32 twins of the network.

The twins are never swapped into the trained network. Nothing but their values is saved: the decay
of a step is a function of the samples seen, so a resumed average goes on as if never stopped.
"""

from __future__ import annotations

import copy
import re
from dataclasses import dataclass

import numpy as np
import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn

from lit_restore.callbacks.horizon import StepCallback
from lit_restore.errors import UserError
from lit_restore.training.base import TrainingModule
from lit_restore.weights.pieces import is_spread, local_part


@dataclass(frozen=True, kw_only=True)
class EMAProfile:
    """How one average forgets: give exactly one of the two."""

    half_life: int | None = None
    """Images after which a weight counts half."""
    sigma_rel: float | None = None
    """Relative width of a power-function average (EDM2, arXiv 2312.02696, eq. 121–127)."""

    def __post_init__(self) -> None:
        if (self.half_life is None) == (self.sigma_rel is None):
            raise UserError(
                "needs either half_life or sigma_rel; set the other to null", where="ema.profiles"
            )
        if self.half_life is not None and self.half_life < 1:
            raise UserError("half_life is a positive number of images", where="ema.profiles")
        if self.sigma_rel is not None and not 0 < self.sigma_rel < 0.288:
            raise UserError("sigma_rel lies in (0, 0.288)", where="ema.profiles")

    def decay(self, samples_seen: int, batch: int) -> float:
        """Share of the old average that a step keeps.

        Args:
            samples_seen: samples after the step.
            batch: samples of the step.
        """
        if self.sigma_rel is not None:
            exponent = power_exponent(self.sigma_rel)
            return float((1 - batch / samples_seen) ** (exponent + 1))
        assert self.half_life is not None
        # Early on the average is over a fixed share of the run, so that it forgets the start.
        half_life = min(self.half_life, samples_seen / 10)
        return float(0.5 ** (batch / half_life))


def power_exponent(sigma_rel: float) -> float:
    """γ of the power-function average whose profile has relative width `sigma_rel`.

    The real root of γ³ + 7γ² + (16 − σ⁻²)γ + (12 − σ⁻²) = 0 (EDM2, eq. 126–127).
    """
    inverse = sigma_rel**-2
    return float(np.roots([1, 7, 16 - inverse, 12 - inverse]).real.max())


class EMA(StepCallback):
    """Keep averaged float32 twins of the module's network; validation samples with the first.

    Args:
        profiles: name → how that average forgets; empty for none.
    """

    def __init__(self, profiles: dict[str, EMAProfile] | None = None) -> None:
        odd = [
            name for name in profiles or () if not re.fullmatch(r"[\w-]+", name) or name == "raw"
        ]
        if odd:
            raise UserError(
                f'"{odd[0]}" is no name for an average; use letters, digits, _ and -, not "raw"',
                where="ema.profiles",
            )
        self.profiles = {"ema": EMAProfile(half_life=20_000)} if profiles is None else profiles
        self.twins: dict[str, nn.Module] = {}
        self._pairs: dict[str, tuple[list[Tensor], list[Tensor]]] = {}

    def setup(self, trainer: Trainer, pl_module: TrainingModule, stage: str) -> None:  # type: ignore[override]
        """Make the twins while the network is still whole (before any sharding)."""
        if not self.twins:
            self.twins = {name: make_twin(pl_module.net) for name in self.profiles}
        pl_module.averages = self.twins

    def on_fit_start(self, trainer: Trainer, pl_module: TrainingModule) -> None:  # type: ignore[override]
        """Bring the twins to the network's device and pair their tensors with its own."""
        for name, twin in self.twins.items():
            twin.to(pl_module.device, _precision(pl_module.net))
            self._pairs[name] = _float_pairs(twin, pl_module.net)

    def on_validation_start(self, trainer: Trainer, pl_module: TrainingModule) -> None:  # type: ignore[override]
        """Bring the twins to the device and precision where no fit came before."""
        for twin in self.twins.values():
            twin.to(pl_module.device, _precision(pl_module.net))

    def on_test_start(self, trainer: Trainer, pl_module: TrainingModule) -> None:  # type: ignore[override]
        """As for validation."""
        self.on_validation_start(trainer, pl_module)

    def on_predict_start(self, trainer: Trainer, pl_module: TrainingModule) -> None:  # type: ignore[override]
        """As for validation."""
        self.on_validation_start(trainer, pl_module)

    @torch.no_grad()
    def on_step(self, trainer: Trainer, module: TrainingModule, samples_seen: int) -> None:
        """Follow the weights; skipped steps do not count."""
        if module.step_skipped:
            return
        size = module.data.global_batch
        for name, profile in self.profiles.items():
            averages, weights = self._pairs[name]
            torch._foreach_lerp_(averages, weights, 1 - profile.decay(samples_seen, size))
            copy_rest(self.twins[name], module.net)


def _precision(net: nn.Module) -> torch.dtype:
    """Of the averages: float32, or float64 where the network is."""
    double = any(p.dtype == torch.float64 for p in net.parameters())
    return torch.float64 if double else torch.float32


def make_twin(net: nn.Module) -> nn.Module:
    """A copy of `net` that is not trained, float32 at least (bf16 would round updates away)."""
    twin = copy.deepcopy(net).eval().requires_grad_(False)
    half = any(p.dtype in (torch.bfloat16, torch.float16) for p in twin.parameters())
    return twin.float() if half else twin


def _float_pairs(twin: nn.Module, net: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    pairs = list(zip(twin.parameters(), net.parameters(), strict=True))
    for average, weight in pairs:  # the same strides, or foreach falls back to one by one
        if not is_spread(average):
            average.data = torch.empty_like(weight, dtype=average.dtype).copy_(average)
    return [local_part(a).data for a, _ in pairs], [local_part(w).data for _, w in pairs]


def copy_rest(twin: nn.Module, net: nn.Module) -> None:
    """Buffers are no averages: they are copied."""
    for copied, buffer in zip(twin.buffers(), net.buffers(), strict=True):
        copied.copy_(buffer)
