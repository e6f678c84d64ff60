"""The discrete variance-preserving diffusion of DDPM, and jumps of any length back through it.

Time is an index here: t = 0 is the clean image, alpha_bar_0 = 1, and t = 1 … T are the noisy ones,

    x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) n.

Papers that count from 0 (DP-IR's "timestep 250" is where 255 sigma = 244.3) mean our t by t - 1.

While the estimate of x_0 stays what it is, any number of reverse steps is one Gaussian draw
(Zhussip et al. 2024, arXiv 2411.05993, Lemma 3.2, eq. 8 to 10; here without its sums):

    x_s ~ N(c_0 x_0 + c_t x_t, v),    0 <= s < t
    c_0 = (alpha_bar_s - alpha_bar_t) / (sqrt(alpha_bar_s) (1 - alpha_bar_t))
    c_t = sqrt(alpha_bar_t / alpha_bar_s) (1 - alpha_bar_s) / (1 - alpha_bar_t)

and v = sum over the steps m = s+1 … t of (c_{m-1 -> s})^2 sigma_m^2, where c_{s -> s} = 1 and
sigma_m^2 is beta_m, or the posterior's beta_m (1 - alpha_bar_{m-1}) / (1 - alpha_bar_m).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

from lit_restore.errors import UserError, require_choice

Variance: TypeAlias = Literal["beta", "posterior"]
VARIANCES: tuple[str, ...] = get_args(Variance)


@dataclass(frozen=True)
class Jump:
    """The distribution of x_s given x_t and x_0: N(x0 · x_0 + xt · x_t, variance)."""

    x0: float
    """Coefficient of x_0."""
    xt: float
    """Coefficient of x_t."""
    variance: float
    """Of each pixel."""

    def __call__(self, x_t: Tensor, x0: Tensor, noise: Tensor | None = None) -> Tensor:
        """x_s; its mean where there is no noise.

        Args:
            x_t: (B, C, H, W).
            x0: the estimate of the clean image, likewise.
            noise: standard normal, likewise.
        """
        mean = self.x0 * x0 + self.xt * x_t
        return mean if noise is None else mean + self.variance**0.5 * noise


class DiscreteDiffusion:
    """The schedule of a variance-preserving diffusion in T steps, in float64.

    Args:
        steps: T.
        beta_min: beta_1.
        beta_max: beta_T; linear in between (Ho et al. 2020, arXiv 2006.11239).

    Raises:
        UserError: no steps, or betas out of order or not within (0, 1).
    """

    def __init__(self, steps: int = 1000, beta_min: float = 1e-4, beta_max: float = 2e-2) -> None:
        if steps < 1:
            raise UserError(f"{steps} is below 1", where="steps")
        if not 0 < beta_min <= beta_max < 1:
            raise UserError(f"{beta_max} is below beta_min {beta_min}, or not within (0, 1)",
                            where="beta_max")  # fmt: skip
        self.steps = steps
        beta = torch.linspace(beta_min, beta_max, steps, dtype=torch.float64)
        self.beta = torch.cat([beta.new_zeros(1), beta])
        """(T + 1,); beta_0 = 0."""
        self.alpha_bar = (1 - self.beta).cumprod(0)
        """(T + 1,); the product of 1 - beta."""
        # sum over m <= t of alpha_bar_{m-1} beta_m / (1 - alpha_bar_{m-1})^2, from m = 2 on.
        before = self.alpha_bar[1:-1]
        terms = before * self.beta[2:] / (1 - before) ** 2
        self._sums = torch.cat([beta.new_zeros(2), terms.cumsum(0)])

    def sigma(self, t: Tensor | int) -> Tensor:
        """Noise of x_t / sqrt(alpha_bar_t), in image units; float64 of the shape of t."""
        alpha_bar = self.alpha_bar[torch.as_tensor(t).cpu()]
        return ((1 - alpha_bar) / alpha_bar).sqrt()

    def index(self, sigma: float) -> int:
        """The least t whose `sigma` is at least this, T where none is."""
        levels = self.sigma(torch.arange(self.steps + 1))
        return min(self.steps, int(torch.searchsorted(levels, sigma)))

    def diffuse(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """x_t of clean images.

        Args:
            x0: (B, C, H, W) in [0, 1].
            t: (B,) int64, 0 … T.
            noise: standard normal, (B, C, H, W).
        """
        alpha_bar = self.alpha_bar[t.cpu()].to(x0).view(-1, 1, 1, 1)
        return alpha_bar.sqrt() * x0 + (1 - alpha_bar).sqrt() * noise

    def jump(self, t: int, s: int, variance: Variance = "beta") -> Jump:
        """From t back to s, the estimate of x_0 being held.

        Args:
            t: where from, 1 … T.
            s: where to, 0 … t - 1. Where it is t - 1 this is the step of DDPM.
            variance: beta (the paper's, and the larger) or posterior.

        Raises:
            UserError: an unknown variance.
        """
        require_choice(variance, VARIANCES, where="variance")
        assert 0 <= s < t <= self.steps, (t, s)
        bar_t, bar_s = float(self.alpha_bar[t]), float(self.alpha_bar[s])
        posterior = (1 - bar_s) * (1 - bar_t / bar_s) / (1 - bar_t)
        sums = float(self._sums[t] - self._sums[s + 1])
        beta = float(self.beta[s + 1]) + (1 - bar_s) ** 2 / bar_s * sums
        return Jump(
            x0=(bar_s - bar_t) / (bar_s**0.5 * (1 - bar_t)),
            xt=(bar_t / bar_s) ** 0.5 * (1 - bar_s) / (1 - bar_t),
            variance=beta if variance == "beta" else posterior,
        )

    def ddim(self, t: int, s: int, eta: float = 0.0) -> Jump:
        """DDIM's step (Song et al. 2021, arXiv 2010.02502, eq. 12 and 16), in terms of x_0.

        Args:
            t: where from, 1 … T.
            s: where to, 0 … t - 1.
            eta: 0 is deterministic, 1 has the posterior's variance.
        """
        assert 0 <= s < t <= self.steps, (t, s)
        bar_t, bar_s = float(self.alpha_bar[t]), float(self.alpha_bar[s])
        variance = eta**2 * (1 - bar_s) * (1 - bar_t / bar_s) / (1 - bar_t)
        rest = ((1 - bar_s - variance) / (1 - bar_t)) ** 0.5
        return Jump(x0=bar_s**0.5 - rest * bar_t**0.5, xt=rest, variance=variance)
