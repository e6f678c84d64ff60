"""Samples of p(x_0 | y) in a few steps: most of the reverse process is one draw (DP-IR).

Zhussip et al. 2024, arXiv 2411.05993, section 3.4: above t = tau the estimate of the clean image is
the restoration network's, constant in t, and all those steps collapse into one Gaussian draw
(eq. 11); from tau on they are taken one by one, or in strides (DDIM for super-resolution), with the
fused estimate. tau turns fidelity into perceptual quality.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

from lit_restore.diffusion.discrete import VARIANCES, DiscreteDiffusion, Jump, Variance
from lit_restore.diffusion.noise import standard_normal
from lit_restore.errors import UserError, require_choice
from lit_restore.inverse.fused import FusedEstimate

Tail: TypeAlias = Literal["ancestral", "ddim"]
Start: TypeAlias = Literal["jump", "ccdf"]


@dataclass(frozen=True, kw_only=True)
class PosteriorOptions:
    """How samples are drawn."""

    tau: int = 50
    """Where the fused estimate takes over, 0 … T: 0 is the restoration network's output itself; the
    larger, the more is drawn anew, and the less faithful."""
    steps: int | None = None
    """Steps from tau to 0, evenly spaced; none for each of them."""
    tail: Tail = "ancestral"
    """ancestral (DDPM's) or ddim steps."""
    eta: float = 0.0
    """ddim: how much noise its steps add, 0 none, 1 the posterior's."""
    variance: Variance = "beta"
    """Of the draw to tau and of ancestral steps: beta (the paper's) or posterior."""
    start: Start = "jump"
    """jump: eq. 11. ccdf: sqrt(alpha_bar_tau) x + sqrt(1 - alpha_bar_tau) n, as CCDF and SDEdit
    start, to compare."""

    def __post_init__(self) -> None:
        if self.tau < 0:
            raise UserError(f"{self.tau} is negative", where="tau")
        if self.steps is not None and not 1 <= self.steps <= max(1, self.tau):
            raise UserError(f"{self.steps} is not within 1 to tau ({self.tau})", where="steps")
        require_choice(self.tail, get_args(Tail), where="tail")
        require_choice(self.variance, VARIANCES, where="variance")
        require_choice(self.start, get_args(Start), where="start")
        if not 0 <= self.eta <= 1:
            raise UserError(f"{self.eta} is not within 0 to 1", where="eta")
        if self.variance != "beta" and self.tail == "ddim" and self.start == "ccdf":
            raise UserError("neither ddim steps nor ccdf's start have it", where="variance")
        if self.eta and self.tail != "ddim":
            raise UserError("only ddim steps have it", where="eta")

    def times(self) -> list[int]:
        """The steps: tau … 0, falling."""
        count = self.tau if self.steps is None else self.steps
        return [round(self.tau * (1 - k / count)) for k in range(count + 1)] if self.tau else [0]


@dataclass(frozen=True, kw_only=True)
class PosteriorResult:
    """What sampling gives back."""

    samples: Tensor
    """(B, C, H, W), not clipped."""
    nfe: int
    """Evaluations of the fused estimate; the restoration network's one call comes on top."""


@torch.no_grad()
def sample_posterior(
    prior: FusedEstimate,
    restored: Tensor,
    options: PosteriorOptions,
    generators: Sequence[torch.Generator],
) -> PosteriorResult:
    """Draw one clean image for each restored one.

    Args:
        prior: the fused estimate.
        restored: E[x_0 | y], (B, C, H, W) in [0, 1].
        options: how.
        generators: one per sample, on any device; a sample depends on its own alone.

    Raises:
        UserError: tau is above the schedule's T.
    """
    diffusion = prior.diffusion
    if options.tau > diffusion.steps:
        raise UserError(f"{options.tau} is above the schedule's {diffusion.steps}", where="tau")

    def noise() -> Tensor:
        shape = restored.shape[1:]
        return standard_normal(shape, generators, device=restored.device, dtype=restored.dtype)

    times = options.times()
    x = _start(diffusion, restored, options, noise(), noise()) if options.tau else restored
    for t, s in pairwise(times):
        x0 = prior(x, restored, t)
        jump = _step(diffusion, t, s, options)
        # The last step adds nothing: what is left is the estimate.
        noisy = s > 0 and jump.variance > 0
        x = jump(x, x0, noise() if noisy else None)
    return PosteriorResult(samples=x, nfe=len(times) - 1)


def _start(
    diffusion: DiscreteDiffusion,
    restored: Tensor,
    options: PosteriorOptions,
    first: Tensor,
    second: Tensor,
) -> Tensor:
    """x_tau; both ways start from the same two noises."""
    tau = options.tau
    if options.start == "ccdf":
        bar = float(diffusion.alpha_bar[tau])
        return math.sqrt(bar) * restored + math.sqrt(1 - bar) * first
    if tau == diffusion.steps:  # nothing to skip: x_T is standard normal
        return first
    return diffusion.jump(diffusion.steps, tau, options.variance)(first, restored, second)


def _step(diffusion: DiscreteDiffusion, t: int, s: int, options: PosteriorOptions) -> Jump:
    if options.tail == "ddim":
        return diffusion.ddim(t, s, options.eta)
    return diffusion.jump(t, s, options.variance)
