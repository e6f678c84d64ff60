"""Targets whose velocity, noise, score and data prediction are known in closed form."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lit_restore.diffusion.interpolants import Interpolant, expand, interpolant_named
from lit_restore.diffusion.predictions import Estimates, Prediction, interval

NAMES = ("linear", "gvp", "vp")


@dataclass(frozen=True)
class Mixture:
    """Every element of x1 is drawn, alone, from Σ_k weights_k N(means_k, stds_k²)."""

    interpolant: Interpolant
    means: tuple[float, ...] = (-1.0, 0.5)
    stds: tuple[float, ...] = (0.3, 0.5)
    weights: tuple[float, ...] = (0.4, 0.6)

    @property
    def interval(self) -> tuple[float, float]:
        return interval(self.interpolant, "velocity")

    def __call__(self, x: Tensor, t: Tensor) -> Estimates:
        return Estimates(self.velocity(x, t), "velocity", x, t, self.interpolant)

    def take(self, rows: Tensor) -> Mixture:
        return self

    def parts(self, x: Tensor, t: Tensor) -> tuple[Tensor, ...]:
        """Along a new last axis of components: α, σ, centred x, variance, posterior weight."""
        alpha = expand(self.interpolant.alpha(t), x)[..., None]
        sigma = expand(self.interpolant.sigma(t), x)[..., None]
        means, stds, weights = map(x.new_tensor, (self.means, self.stds, self.weights))
        centred = x[..., None] - alpha * means
        variance = (alpha * stds) ** 2 + sigma**2
        log = weights.log() - 0.5 * variance.log() - 0.5 * centred**2 / variance
        return alpha, sigma, centred, variance, log.softmax(-1)

    def data(self, x: Tensor, t: Tensor) -> Tensor:
        alpha, _, centred, variance, share = self.parts(x, t)
        means, stds = map(x.new_tensor, (self.means, self.stds))
        return (share * (means + stds**2 * alpha / variance * centred)).sum(-1)

    def noise(self, x: Tensor, t: Tensor) -> Tensor:
        _, sigma, centred, variance, share = self.parts(x, t)
        return (share * sigma * centred / variance).sum(-1)

    def score(self, x: Tensor, t: Tensor) -> Tensor:
        _, _, centred, variance, share = self.parts(x, t)
        return -(share * centred / variance).sum(-1)

    def velocity(self, x: Tensor, t: Tensor) -> Tensor:
        return self.interpolant.velocity(self.data(x, t), self.noise(x, t), t)

    def cdf(self, x: Tensor, t: float) -> Tensor:
        """P(x_t < x), element by element: what the flow keeps along every path."""
        time = torch.tensor(t, dtype=x.dtype)
        _, _, centred, variance, _ = self.parts(x, time)
        below = torch.special.ndtr(centred / variance.sqrt())
        return (x.new_tensor(self.weights) * below).sum(-1)

    def exact(self, kind: Prediction, x: Tensor, t: Tensor) -> Tensor:
        return {"velocity": self.velocity, "noise": self.noise, "score": self.score,
                "data": self.data}[kind](x, t)  # fmt: skip

    def moments(self) -> tuple[float, float]:
        """Mean and variance of an element of x1."""
        parts = list(zip(self.weights, self.means, self.stds, strict=True))
        mean = sum(w * m for w, m, _ in parts)
        return mean, sum(w * (m**2 + s**2) for w, m, s in parts) - mean**2

    def draw(self, count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
        """Data and noise, (count, 4) float64."""
        generator = torch.Generator().manual_seed(seed)
        shape = (count, 4)
        shares = torch.tensor(self.weights, dtype=torch.float64)
        which = torch.multinomial(shares, count * 4, True, generator=generator).view(shape)
        x0 = torch.randn(shape, generator=generator, dtype=torch.float64)
        spread = torch.randn(shape, generator=generator, dtype=torch.float64)
        means, stds = (torch.tensor(v, dtype=torch.float64) for v in (self.means, self.stds))
        return means[which] + stds[which] * spread, x0


def mixture(name: str = "linear") -> Mixture:
    return Mixture(interpolant_named(name))


def gaussian(name: str, mean: float = 0.7, std: float = 0.4) -> Mixture:
    return Mixture(interpolant_named(name), (mean,), (std,), (1.0,))


def noise(count: int, seed: int = 0, size: int = 6) -> Tensor:
    """(count, size) float64."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, size, generator=generator, dtype=torch.float64)
