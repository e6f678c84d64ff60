"""Pictures as the networks of perceptual metrics take them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from lit_restore.evaluation.metrics import Values


def to_unit(image: Values) -> Tensor:
    """(H, W, 1 or 3) in [0, 255] → (1, 3, H, W) float32 in [0, 1]; grey in all three channels."""
    planes = np.moveaxis(np.asarray(image, np.float64), -1, 0) / 255
    tensor = torch.from_numpy(np.ascontiguousarray(planes)).float()
    return tensor.expand(3, -1, -1)[None]


def check_pair(output: Values, target: Values, *, least: int) -> None:
    """Refuse a pair that cannot be measured.

    Raises:
        ValueError: the shapes differ, or the shorter side is below `least` pixels.
    """
    if output.shape != target.shape:
        raise ValueError(f"sizes differ: {output.shape} and {target.shape}")
    height, width = target.shape[:2]
    if min(height, width) < least:
        raise ValueError(f"{width}x{height} is too small; the network needs {least} pixels a side")
