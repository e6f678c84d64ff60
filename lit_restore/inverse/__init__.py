"""Inverse problems: restoration with a diffusion prior. Pure PyTorch."""

from lit_restore.inverse.fused import FusedEstimate, FusedPrior, TiledEstimate
from lit_restore.inverse.posterior import (
    PosteriorOptions,
    PosteriorResult,
    sample_posterior,
)

__all__ = [
    "FusedEstimate",
    "FusedPrior",
    "PosteriorOptions",
    "PosteriorResult",
    "TiledEstimate",
    "sample_posterior",
]
