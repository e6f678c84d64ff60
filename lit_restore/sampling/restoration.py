"""Degraded images in, samples of the clean ones out: DP-IR's three networks as one function."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lit_restore.diffusion.noise import sample_generators
from lit_restore.errors import UserError, require_at_least, require_choice
from lit_restore.inverse import PosteriorOptions, TiledEstimate, sample_posterior
from lit_restore.inverse.fused import ESTIMATES, Estimate, FusedEstimate
from lit_restore.networks.tiling import LEAST_TILE, overlap_of
from lit_restore.weights.fused import LoadedFusion


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
        require_at_least(1, samples=self.samples)
        require_choice(self.estimate, ESTIMATES, where="estimate")
        require_at_least(LEAST_TILE, tile=self.tile)


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
        UserError: tau is above them, or has more noise than the denoiser knows.
    """
    tau = options.posterior.tau
    if options.estimate == "fusion" and tau > model.t_max:
        raise UserError(
            f"{tau} is above {model.t_max}, the largest time that the fusion network was trained "
            "for",
            where="tau",
        )
    if tau > model.diffusion.steps:
        raise UserError(f"{tau} is above the schedule's {model.diffusion.steps}", where="tau")
    limit = model.sigma_max
    if limit is not None and tau and options.estimate != "restored":
        level = float(model.diffusion.sigma(tau))
        if level > 1.01 * limit:
            raise UserError(
                f"{tau} has noise of {255 * level:.3g} of 255, the denoiser was trained for up to "
                f"{255 * limit:.3g}",
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
    with exact():
        return _restored(model, degraded, options, keys)


def _restored(
    model: LoadedFusion, degraded: Tensor, options: RestoreOptions, keys: Sequence[str]
) -> Restored:
    tile = model.restorer.tile_output(degraded, options.tile)
    regression = model.restorer(degraded.float())
    prior: FusedEstimate = model.prior(options.estimate)
    if tile is not None:
        multiple = math.lcm(model.denoiser.multiple, model.fusion.multiple)
        prior = TiledEstimate(prior, tile=tile, overlap=overlap_of(tile), multiple=multiple)
    drawn, nfe = [], 0
    for k in range(options.samples):
        generators = sample_generators(options.seed, keys, f"posterior/{k}")
        result = sample_posterior(prior, regression, options.posterior, generators)
        drawn.append(result.samples)
        nfe = 0 if options.estimate == "restored" else result.nfe
    samples = torch.stack(drawn, dim=1)
    return Restored(
        images=samples.mean(1),
        regression=regression,
        samples=samples,
        deviation=samples.std(1) if options.samples > 1 else None,
        nfe=nfe,
    )


def exact() -> AbstractContextManager[object]:
    """Convolutions in float32 proper: what is measured and cached is not TF32's."""
    return torch.backends.cudnn.flags(enabled=True, benchmark=False, allow_tf32=False)
