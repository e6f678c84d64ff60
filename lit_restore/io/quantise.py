"""The one place where images become 8 bits: what is written is what metrics read."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Pixels: TypeAlias = npt.NDArray[np.uint8]


def to_uint8(x: Tensor) -> Pixels:
    """Clamp to [0, 1] and round half up: floor(255 x + 0.5).

    The arithmetic is float64, so that no value changes sides at a rounding border. A NaN becomes
    0, visibly; whoever must not let it through asks `torch.isfinite` first.

    Args:
        x: images (B, C, H, W), nominally in [0, 1]; any float type and device.

    Returns:
        (B, H, W, C) uint8.
    """
    scaled = x.detach().to("cpu", torch.float64).nan_to_num(nan=0.0).clamp(0, 1)
    pixels = (255 * scaled + 0.5).floor().to(torch.uint8)
    return np.ascontiguousarray(pixels.permute(0, 2, 3, 1).numpy())


def from_pixels(pixels: npt.NDArray[np.uint8 | np.uint16]) -> Tensor:
    """(H, W, C) uint8 or uint16 pixels as one float32 image (1, C, H, W) in [0, 1]."""
    white = np.iinfo(pixels.dtype).max
    scaled = pixels.astype(np.float32) / np.float32(white)
    return torch.from_numpy(np.ascontiguousarray(scaled.transpose(2, 0, 1)))[None]
