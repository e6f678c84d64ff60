"""Interpolants x_t = α(t) x1 + σ(t) x0 between noise (t = 0) and data (t = 1).

x1 is data, x0 ~ N(0, I). Stochastic interpolants (Albergo et al., arXiv 2303.08797) as SiT uses
them (arXiv 2401.08740, §2). Every function of time takes t of any shape, in [0, 1], and returns
that shape.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lit_restore.errors import UserError, require_choice


def expand(t: Tensor, like: Tensor) -> Tensor:
    """Times or coefficients (B,) as (B, 1, …) in the type of `like` (B, …); a scalar stays one."""
    return t.to(like).reshape(t.shape + (1,) * (like.ndim - t.ndim)) if t.ndim else t.to(like)


class Interpolant(ABC):
    """α, σ and their derivatives in time, and what follows from them."""

    name: ClassVar[str]
    """Short name in configs."""
    starts_from_noise: ClassVar[bool] = True
    """α(0) = 0 exactly: x_0 holds nothing of the data."""
    steep_at_data: ClassVar[bool] = False
    """σ'(t) → −∞ as t → 1, so that the velocity has no limit there."""

    @abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        """α(t), the amount of data; rises to 1."""

    @abstractmethod
    def sigma(self, t: Tensor) -> Tensor:
        """σ(t), the amount of noise; falls to 0, exactly 0 at t = 1."""

    @abstractmethod
    def d_alpha(self, t: Tensor) -> Tensor:
        """α'(t) ≥ 0."""

    @abstractmethod
    def d_sigma(self, t: Tensor) -> Tensor:
        """σ'(t) ≤ 0."""

    def determinant(self, t: Tensor) -> Tensor:
        """α σ' − σ α' < 0: of the equations that give (x_t, velocity) from (x1, x0)."""
        return self.alpha(t) * self.d_sigma(t) - self.sigma(t) * self.d_alpha(t)

    def diffusivity(self, t: Tensor) -> Tensor:
        """σ² α'/α − σ σ' = −determinant σ/α, so that velocity = (α'/α) x + diffusivity · score.

        Half of g² of the diffusion with these marginals (SiT, appendix A); infinite where α = 0.
        """
        return -self.determinant(t) * self.sigma(t) / self.alpha(t)

    def log_snr(self, t: Tensor) -> Tensor:
        """λ = log(α/σ), rising; infinite where α or σ is 0 (DPM-Solver, arXiv 2206.00927)."""
        return torch.log(self.alpha(t)) - torch.log(self.sigma(t))

    def mix(self, x1: Tensor, x0: Tensor, t: Tensor) -> Tensor:
        """x_t of data `x1` and noise `x0`, both (B, …), at times (B,)."""
        return expand(self.alpha(t), x1) * x1 + expand(self.sigma(t), x1) * x0

    def velocity(self, x1: Tensor, x0: Tensor, t: Tensor) -> Tensor:
        """dx_t/dt = α' x1 + σ' x0, the target of flow matching."""
        return expand(self.d_alpha(t), x1) * x1 + expand(self.d_sigma(t), x1) * x0


class Linear(Interpolant):
    """α = t, σ = 1 − t: straight paths (rectified flow)."""

    name = "linear"

    def alpha(self, t: Tensor) -> Tensor:
        """`t` itself."""
        return t

    def sigma(self, t: Tensor) -> Tensor:
        """`1 − t`."""
        return 1 - t

    def d_alpha(self, t: Tensor) -> Tensor:
        """One."""
        return torch.ones_like(t)

    def d_sigma(self, t: Tensor) -> Tensor:
        """Minus one."""
        return -torch.ones_like(t)


class GVP(Interpolant):
    """α = sin(πt/2), σ = cos(πt/2): α² + σ² = 1 at a constant speed; DiMSUM's released models."""

    name = "gvp"

    def alpha(self, t: Tensor) -> Tensor:
        """sin(πt/2)."""
        return torch.sin(t * (math.pi / 2))

    def sigma(self, t: Tensor) -> Tensor:
        """cos(πt/2), as sin(π(1 − t)/2), which is exactly 0 at t = 1."""
        return torch.sin((1 - t) * (math.pi / 2))

    def d_alpha(self, t: Tensor) -> Tensor:
        """(π/2) cos(πt/2)."""
        return (math.pi / 2) * self.sigma(t)

    def d_sigma(self, t: Tensor) -> Tensor:
        """−(π/2) sin(πt/2)."""
        return -(math.pi / 2) * self.alpha(t)


@dataclass(frozen=True, kw_only=True)
class VP(Interpolant):
    """Variance preserving diffusion with β linear in time (arXiv 2011.13456, appendix C).

    With u = 1 − t, the diffusion's own time: α = exp(−½ ∫₀ᵘ β) and σ = √(1 − α²), where
    β(u) = beta_min + u (beta_max − beta_min). α(0) = 0.0066 for the usual values, not 0.
    """

    name: ClassVar[str] = "vp"
    starts_from_noise: ClassVar[bool] = False
    steep_at_data: ClassVar[bool] = True

    beta_min: float = 0.1
    """β at the data."""
    beta_max: float = 20.0
    """β at the noise."""

    def __post_init__(self) -> None:
        if not 0 < self.beta_min <= self.beta_max:
            raise UserError(
                f"{self.beta_max} is below beta_min {self.beta_min}, or one is not positive",
                where="beta_max",
            )

    def _log_alpha(self, t: Tensor) -> Tensor:
        u = 1 - t
        return -0.25 * u**2 * (self.beta_max - self.beta_min) - 0.5 * u * self.beta_min

    def _half_beta(self, t: Tensor) -> Tensor:
        return 0.5 * (self.beta_min + (1 - t) * (self.beta_max - self.beta_min))

    def alpha(self, t: Tensor) -> Tensor:
        """exp(−½ ∫ β)."""
        return torch.exp(self._log_alpha(t))

    def sigma(self, t: Tensor) -> Tensor:
        """√(1 − α²)."""
        return torch.sqrt(-torch.expm1(2 * self._log_alpha(t)))

    def d_alpha(self, t: Tensor) -> Tensor:
        """½ β α."""
        return self._half_beta(t) * self.alpha(t)

    def d_sigma(self, t: Tensor) -> Tensor:
        """−½ β α²/σ; −∞ at t = 1."""
        return -self._half_beta(t) * self.alpha(t) ** 2 / self.sigma(t)

    def determinant(self, t: Tensor) -> Tensor:
        """−½ β α/σ, since α² + σ² = 1."""
        return -self._half_beta(t) * self.alpha(t) / self.sigma(t)

    def diffusivity(self, t: Tensor) -> Tensor:
        """½ β, finite everywhere."""
        return self._half_beta(t)


INTERPOLANTS: dict[str, type[Interpolant]] = {kind.name: kind for kind in (Linear, GVP, VP)}
"""Short name → class."""


def interpolant_named(name: str, *, where: str = "interpolant") -> Interpolant:
    """The interpolant of a short name, with its default constants.

    Raises:
        UserError: no interpolant has this name; names the option `where`.
    """
    return INTERPOLANTS[require_choice(name, INTERPOLANTS, where=where)]()
