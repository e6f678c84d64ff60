"""Frames as a moving camera of a quarter of the resolution would see them.

Bhat et al. 2021, arXiv 2101.10997, section 3.4: each frame is the full-size picture, translated and
rotated, sampled bilinearly, and shrunk by 4, bilinearly again and without a filter before it.
Both together come to the mean of four bilinear samples around each point of the coarse grid.

Coarse pixel (r, c) lies at pixel (4r, 4c) of the target, as in the published benchmark (and not
in the middle of its 4×4 block), so that networks trained there see what they know. Without motion
the two steps are the filter [1, 2, 1]/4 along each axis.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

SCALE = 4


def draw_motion(
    frames: int, max_translation: float, max_rotation: float, generator: torch.Generator
) -> Tensor:
    """Draw one affine map for each frame.

    Args:
        frames: how many; the first is the reference and stays where it is.
        max_translation: pixels of the full-size picture along each axis, uniform in ±.
        max_rotation: degrees about the picture's middle, uniform in ±.
        generator: all randomness.

    Returns:
        (frames, 2, 3), [R | t]: the place p of the reference, in pixels (x, y) from the picture's
        middle, is seen at R p + t of the picture.
    """
    drawn = 2 * torch.rand((frames, 3), generator=generator, device=generator.device) - 1
    angle = drawn[:, 0] * math.radians(max_rotation)
    cos, sin = angle.cos(), angle.sin()
    rotation = torch.stack([cos, -sin, sin, cos], dim=1).view(frames, 2, 2)
    motion = torch.cat([rotation, max_translation * drawn[:, 1:, None]], dim=2)
    motion[0] = torch.eye(2, 3)
    return motion


def move_and_shrink(image: Tensor, motion: Tensor, border: int) -> Tensor:
    """All frames of a burst, before mosaic and noise.

    Args:
        image: (C, H, W), H and W being multiples of 4 and twice the border more.
        motion: (F, 2, 3), of `draw_motion`.
        border: pixels at each side of the image that only motion brings into view. What lies
            beyond the image looks like its outermost pixels.

    Returns:
        (F, C, (H - 2 border)/4, (W - 2 border)/4).
    """
    height, width = image.shape[-2:]
    middle = image.new_tensor([(width - 1) / 2, (height - 1) / 2])
    points = _coarse_points(image, border) - middle
    motion = motion.to(image)
    rotation, shift = motion[:, :, :2], motion[:, :, 2]
    seen = torch.einsum("fij,rcsj->frcsi", rotation, points) + shift.view(-1, 1, 1, 1, 2)
    frames, rows, columns = seen.shape[:3]
    # One picture, and the frames' grids one below the other; its outermost pixels are at ±1.
    grid = (seen / middle).reshape(1, frames * rows, columns * 4, 2)
    sampled = F.grid_sample(
        image[None], grid, mode="bilinear", padding_mode="border", align_corners=True
    )
    return sampled[0].view(-1, frames, rows, columns, 4).mean(-1).transpose(0, 1)


def _coarse_points(image: Tensor, border: int) -> Tensor:
    """(rows, columns, 4, 2): around (4r, 4c), half a pixel off in each diagonal direction."""
    height, width = (side - 2 * border for side in image.shape[-2:])

    def along(side: int) -> Tensor:
        return border + torch.arange(0, side, SCALE, dtype=image.dtype, device=image.device)

    half = image.new_tensor([[-0.5, -0.5], [0.5, -0.5], [-0.5, 0.5], [0.5, 0.5]])
    across, down = torch.meshgrid(along(width), along(height), indexing="xy")
    return torch.stack([across, down], dim=-1)[:, :, None] + half
