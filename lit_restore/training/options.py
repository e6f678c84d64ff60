"""Optimiser and learning-rate options, in the units people think in: images."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from lit_restore.errors import UserError, require_at_least


@dataclass(frozen=True, kw_only=True)
class OptimizerOptions:
    """Which optimiser, and its constants."""

    name: Literal["adam", "adamw", "sgd"] = "adamw"
    """adam, adamw (decoupled weight decay) or sgd (with momentum betas[0])."""
    lr: float = 1e-3
    """Peak learning rate; the schedule multiplies it."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of the first and second moment."""
    eps: float = 1e-8
    """Added to the root of the second moment."""
    weight_decay: float = 0.0
    """Weight decay of matrices and kernels; vectors (biases, gains) have none."""
    fused: bool = False
    """adam, adamw: one kernel for all parameters; much faster on a GPU."""

    def __post_init__(self) -> None:
        require_at_least(
            0, model__optimizer__lr=self.lr, model__optimizer__eps=self.eps,
            model__optimizer__weight_decay=self.weight_decay,
        )  # fmt: skip
        if not all(0 <= beta < 1 for beta in self.betas):
            raise UserError("lie in [0, 1)", where="model.optimizer.betas")
        if self.fused and self.name == "sgd":
            raise UserError("is for adam and adamw; leave it out", where="model.optimizer.fused")

    def build(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """The optimiser over `parameters`, in two groups: with and without weight decay."""
        trained = [p for p in parameters if p.requires_grad]
        groups = [
            {"params": [p for p in trained if p.ndim > 1], "weight_decay": self.weight_decay},
            {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
        ]
        groups = [group for group in groups if group["params"]]
        if self.name == "sgd":
            return torch.optim.SGD(groups, lr=self.lr, momentum=self.betas[0])
        adam = torch.optim.Adam if self.name == "adam" else torch.optim.AdamW
        return adam(groups, lr=self.lr, betas=self.betas, eps=self.eps, fused=self.fused or None)


@dataclass(frozen=True, kw_only=True)
class ScheduleOptions:
    """The learning rate over the run: a function of the samples seen, so nothing to restore."""

    name: Literal["constant", "cosine", "linear", "step"] = "cosine"
    """constant; cosine or linear decay to `final` at the end of the run; step: × `gamma` every
    `every` images."""
    warmup: int = 0
    """Images over which the rate rises linearly from 0."""
    final: float = 0.0
    """cosine, linear: the last factor of the peak rate."""
    gamma: float = 0.999
    """step: factor per interval."""
    every: int = 16000
    """step: images per interval."""

    def __post_init__(self) -> None:
        if self.warmup < 0 or self.every < 1 or not 0 <= self.final <= 1:
            raise UserError(
                "needs warmup >= 0, every >= 1 and final in [0, 1]", where="model.schedule"
            )

    def factor(self, samples_seen: int, total_samples: int) -> float:
        """The factor of the peak learning rate for the step that starts at `samples_seen`."""
        if samples_seen < self.warmup:
            return (samples_seen + 1) / self.warmup
        if self.name == "step":
            return self.gamma ** (samples_seen // self.every)
        if self.name == "constant":
            return 1.0
        rest = max(1, total_samples - self.warmup)
        progress = min(1.0, (samples_seen - self.warmup) / rest)
        shape = (1 + math.cos(math.pi * progress)) / 2 if self.name == "cosine" else 1 - progress
        return self.final + (1 - self.final) * shape
