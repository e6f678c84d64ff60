"""E[x_0 | y, x_t] as a fusion of E[x_0 | y] and E[x_0 | x_t], both by frozen networks.

Zhussip et al. 2024, arXiv 2411.05993, eq. 7: F(R(y), D(x_t / sqrt(alpha_bar_t), sigma_t), t).
The restoration network's output R(y) does not depend on t and is computed once for an image.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, Protocol, TypeAlias, get_args

import torch
from torch import Tensor, nn

from lit_restore.diffusion.discrete import DiscreteDiffusion
from lit_restore.errors import require_choice
from lit_restore.networks.base import apply_padded, reflect_to
from lit_restore.networks.tiling import tiled

Estimate: TypeAlias = Literal["fusion", "restored", "denoised"]
ESTIMATES: tuple[str, ...] = get_args(Estimate)
Fusion: TypeAlias = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(restored, denoised, t) → E[x_0 | y, x_t]."""


class FusedEstimate(Protocol):
    """What the sampler asks: an estimate of the clean image at every (x_t, t)."""

    @property
    def diffusion(self) -> DiscreteDiffusion:
        """The schedule."""

    def __call__(self, x_t: Tensor, restored: Tensor, t: int) -> Tensor:
        """E[x_0 | y, x_t], (B, C, H, W)."""


class FusedPrior:
    """A denoiser and a fusion network as one estimate of the clean image.

    Args:
        diffusion: the schedule that the fusion network was trained with.
        denoiser: `net(noisy, sigma)`.
        fusion: `net(restored, denoised, t)`.
        estimate: fusion; or one of its arguments in its place, to compare: restored (the tail of
            the reverse process keeps the restoration network's output) or denoised (it forgets
            the degraded image, as SDEdit does).

    Raises:
        UserError: an unknown estimate.
    """

    def __init__(
        self,
        diffusion: DiscreteDiffusion,
        denoiser: nn.Module,
        fusion: Fusion,
        *,
        estimate: Estimate = "fusion",
    ) -> None:
        require_choice(estimate, ESTIMATES, where="estimate")
        self.diffusion = diffusion
        self.denoiser = denoiser
        self.fusion = fusion
        self.estimate = estimate
        # Of both networks: one border, by reflection, for the state and for R(y).
        self.multiple = math.lcm(*(getattr(net, "multiple", 1) for net in (denoiser, fusion)))

    def __call__(self, x_t: Tensor, restored: Tensor, t: int) -> Tensor:
        """E[x_0 | y, x_t].

        Args:
            x_t: the state, (B, C, H, W).
            restored: E[x_0 | y], (B, C, H, W) in [0, 1].
            t: the time index, 1 … T.
        """
        if self.estimate == "restored":
            return restored
        height, width = x_t.shape[-2:]
        sides = tuple(side + -side % self.multiple for side in (height, width))
        x_t, restored = (reflect_to(image, *sides) for image in (x_t, restored))
        return self._padded(x_t, restored, t)[..., :height, :width]

    def _padded(self, x_t: Tensor, restored: Tensor, t: int) -> Tensor:
        # On the CPU, where the schedule is: to ask a GPU for it would wait for the step before.
        times = torch.full((len(x_t),), t, dtype=torch.int64)
        denoised = self.denoised(x_t, times)
        if self.estimate == "denoised":
            return denoised
        return self.fusion(restored, denoised, times.to(x_t.device)).to(x_t.dtype)

    def denoised(self, x_t: Tensor, t: Tensor) -> Tensor:
        """E[x_0 | x_t]: the denoiser on x_t / sqrt(alpha_bar_t), whose noise is sigma_t.

        Args:
            x_t: (B, C, H, W).
            t: (B,) int64, 1 … T, best on the CPU.
        """
        return denoise(self.denoiser, self.diffusion, x_t, t)


def denoise(net: nn.Module, diffusion: DiscreteDiffusion, x_t: Tensor, t: Tensor) -> Tensor:
    """See `FusedPrior.denoised`."""
    sigma = diffusion.sigma(t)
    scale = (1 + sigma.square()).sqrt().to(x_t)  # 1 / sqrt(alpha_bar)
    noisy = x_t * scale.view(-1, 1, 1, 1)
    return apply_padded(net, noisy, sigma.to(x_t)).to(x_t.dtype)


class TiledEstimate:
    """A fused estimate of images too large for the memory, tile by tile at every step.

    The state stays whole, and so does its noise: tiles differ in what the networks see of their
    surroundings alone, and fade into each other (`networks.tiling`).

    Args:
        prior: the estimate.
        tile: side of a tile, pixels.
        overlap: of neighbouring tiles.
        multiple: of the networks' strides: tiles begin at multiples of it, so that their coarser
            grids are the whole image's. Sides, tile and overlap are brought up to it.
    """

    def __init__(
        self, prior: FusedEstimate, *, tile: int, overlap: int = 64, multiple: int = 1
    ) -> None:
        self.prior, self.multiple = prior, multiple
        self.tile, self.overlap = (side + -side % multiple for side in (tile, overlap))

    @property
    def diffusion(self) -> DiscreteDiffusion:
        """The schedule."""
        return self.prior.diffusion

    def __call__(self, x_t: Tensor, restored: Tensor, t: int) -> Tensor:
        """See `FusedPrior`."""
        channels = x_t.shape[1]

        def apply(both: Tensor) -> Tensor:
            return self.prior(both[:, :channels], both[:, channels:], t)

        height, width = x_t.shape[-2:]
        sides = (side + -side % self.multiple for side in (height, width))
        both = reflect_to(torch.cat([x_t, restored], dim=1), *sides)
        whole = tiled(apply, both, scale=1, tile=self.tile, overlap=self.overlap)
        return whole[..., :height, :width]
