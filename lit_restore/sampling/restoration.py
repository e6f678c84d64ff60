"""Degraded images in, samples of the clean ones out: DP-IR's three networks as one function."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lit_restore.diffusion.noise import sample_generators
from lit_restore.errors import UserError, require_at_least, require_choice
from lit_restore.inverse import PosteriorOptions, TiledEstimate, sample_posterior
from lit_restore.inverse.fused import ESTIMATES, Estimate, FusedEstimate
from lit_restore.weights.fused import LoadedFusion

LARGEST = 4_000_000
"""Pixels of a restored image that go through in one piece, where no tile is set."""
TILE, OVERLAP = 1024, 128
"""Beyond it: pixels of the restored image."""


@dataclass(frozen=True, kw_only=True)
class RestoreOptions:
    """How images are restored."""

    posterior: PosteriorOptions = field(default_factory=PosteriorOptions)
    """The sampler's."""
    estimate: Estimate = "fusion"
    """fusion; or to compare, restored or denoised: what the tail takes for the clean image."""
    samples: int = 1
    """How many are drawn for each image; of several the mean is the result."""
    seed: int = 0
    """Of the noise, with each image's key."""
    tile: int | None = None
    """Largest side in one piece, pixels of the restored image; none: 1024 above 4 megapixels."""

    def __post_init__(self) -> None:
        require_at_least(1, samples=self.samples, tile=self.tile)
        require_choice(self.estimate, ESTIMATES, where="estimate")
        if self.tile is not None and self.tile <= OVERLAP:
            raise UserError(f"{self.tile} is not above the overlap of {OVERLAP}", where="tile")


@dataclass(frozen=True, kw_only=True)
class Restored:
    """What became of some images."""

    images: Tensor
    """(B, C, H, W): the sample, or the mean of all."""
    regression: Tensor
    """(B, C, H, W): the restoration network's output, E[x | y]."""
    samples: Tensor
    """(B, S, C, H, W)."""
    deviation: Tensor | None
    """(B, C, H, W): standard deviation of the samples at each pixel, none of a single one."""
    nfe: int
    """Evaluations of the denoiser and the fusion for one sample."""


def check_tau(model: LoadedFusion, options: RestoreOptions) -> None:
    """Refuse times that the fusion network never saw.

    Raises:
        UserError: tau is above them.
    """
    tau = options.posterior.tau
    if options.estimate == "fusion" and tau > model.t_max:
        raise UserError(
            f"{tau} is above {model.t_max}, the largest time that the fusion network was trained "
            "for",
            where="tau",
        )


@torch.no_grad()
def restore_images(
    model: LoadedFusion, degraded: Tensor, options: RestoreOptions, keys: Sequence[str]
) -> Restored:
    """Restore images of one size.

    Args:
        model: the networks, on the device of the images.
        degraded: (B, C, h, w) in [0, 1].
        options: how.
        keys: one for each image: its noise depends on (seed, key, number of the sample) alone.

    Raises:
        UserError: tau is above the times that the fusion network was trained for.
    """
    check_tau(model, options)
    scale = model.restorer.scale
    tile = _tile(degraded, scale, options.tile)
    if tile is None:
        model.restorer.set_tile(None)
    else:
        model.restorer.set_tile(-(-tile // scale), OVERLAP // scale)
    regression = model.restorer(degraded.float())
    prior: FusedEstimate = model.prior(options.estimate)
    if tile is not None:
        prior = TiledEstimate(prior, tile=tile, overlap=OVERLAP)
    drawn, nfe = [], 0
    for k in range(options.samples):
        generators = sample_generators(options.seed, keys, f"posterior/{k}")
        result = sample_posterior(prior, regression, options.posterior, generators)
        drawn.append(result.samples)
        nfe = result.nfe
    samples = torch.stack(drawn, dim=1)
    return Restored(
        images=samples.mean(1),
        regression=regression,
        samples=samples,
        deviation=samples.std(1) if options.samples > 1 else None,
        nfe=nfe,
    )


def _tile(degraded: Tensor, scale: int, tile: int | None) -> int | None:
    height, width = (scale * side for side in degraded.shape[-2:])
    if tile is not None:
        return tile if max(height, width) > tile else None
    return TILE if height * width > LARGEST else None
