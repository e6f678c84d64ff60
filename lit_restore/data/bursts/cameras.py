"""Colours of cameras: the matrix and the gains that a burst is drawn with (arXiv 1811.11127)."""

from __future__ import annotations

import torch
from torch import Tensor

_XYZ_TO_CAMERA = (
    ((1.0234, -0.2969, -0.2266), (-0.5625, 1.6328, -0.0469), (-0.0703, 0.2188, 0.6406)),
    ((0.4913, -0.0541, -0.0202), (-0.6130, 1.3513, 0.2906), (-0.1564, 0.2151, 0.7183)),
    ((0.8380, -0.2630, -0.0639), (-0.2887, 1.0725, 0.2496), (-0.0627, 0.1427, 0.5438)),
    ((0.6596, -0.2079, -0.0562), (-0.4782, 1.3016, 0.1933), (-0.0970, 0.1581, 0.5181)),
)
"""Of the four cameras of the Darmstadt Noise Dataset."""

_RGB_TO_XYZ = (
    (0.4124564, 0.3575761, 0.1804375),
    (0.2126729, 0.7151522, 0.0721750),
    (0.0193339, 0.1191920, 0.9503041),
)
"""Linear sRGB, white D65 (IEC 61966-2-1)."""


def draw_ccm(generator: torch.Generator) -> Tensor:
    """Draw a matrix (3, 3) from linear sRGB to a camera's RGB, rows of sum 1: white stays white.

    A convex combination of four cameras' matrices, of uniform weights over their sum.
    """
    weights = torch.rand(4, generator=generator, device=generator.device)
    cameras = torch.tensor(_XYZ_TO_CAMERA, device=generator.device)
    to_xyz = torch.tensor(_RGB_TO_XYZ, device=generator.device)
    ccm = torch.einsum("k,kij,jl->il", weights / weights.sum(), cameras, to_xyz)
    return ccm / ccm.sum(dim=1, keepdim=True)


def draw_gains(generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Draw (rgb, red, blue), scalars: 1/N(0.8, 0.1²), U(1.9, 2.4) and U(1.5, 1.9)."""
    z = torch.randn((), generator=generator, device=generator.device)
    u = torch.rand(2, generator=generator, device=generator.device)
    return 1 / (0.8 + 0.1 * z), 1.9 + 0.5 * u[0], 1.5 + 0.4 * u[1]
