"""The RGGB Bayer pattern: mosaics, and their four colours packed as planes of half the size."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def mosaic(image: Tensor) -> Tensor:
    """Keep of each pixel the colour that an RGGB sensor sees there.

    Args:
        image: (…, 3, H, W), H and W even.

    Returns:
        (…, H, W): red at even rows and columns, blue at odd ones, green elsewhere.
    """
    seen = image[..., 1, :, :].clone()
    seen[..., 0::2, 0::2] = image[..., 0, 0::2, 0::2]
    seen[..., 1::2, 1::2] = image[..., 2, 1::2, 1::2]
    return seen


def pack(plane: Tensor) -> Tensor:
    """A mosaic (…, H, W) as planes (…, 4, H/2, W/2): red, green beside it, green below it, blue."""
    return F.pixel_unshuffle(plane.unsqueeze(-3), 2)


def unpack(planes: Tensor) -> Tensor:
    """The inverse of `pack`: (…, 4, h, w) → (…, 2h, 2w)."""
    return F.pixel_shuffle(planes, 2).squeeze(-3)


def half_size_rgb(planes: Tensor) -> Tensor:
    """A packed frame (…, 4, h, w) as RGB (…, 3, h, w), the greens averaged: for a quick look."""
    red, green_1, green_2, blue = planes.unbind(-3)
    return torch.stack([red, (green_1 + green_2) / 2, blue], dim=-3)
