"""Smaller images: MATLAB's antialiased bicubic, by any scale."""

from __future__ import annotations

import torch
from torch import Tensor

from lit_restore.data.degradations.base import KEY, Degradation, require_within, uniform
from lit_restore.errors import UserError
from lit_restore.ops.resize import imresize

_LARGEST = 16


class Downscale(Degradation):
    """Smaller by a scale, MATLAB's antialiased bicubic (`ops.resize`); not clipped.

    Images are cropped before they are degraded, so that a scale must divide the crop. With
    `restore_size` it need not: the small image is enlarged again, pixel centres in their places,
    for a network of scale 1 that learns one scale or, with `scale_max`, all of a range.

    Args:
        scale: how many times smaller, 1 to 16; need not be whole.
        scale_max: draw the scale for each sample from U[scale, scale_max]; needs `restore_size`.
        restore_size: enlarge the result to the clean image's size, by bicubic interpolation.

    Raises:
        UserError: a scale out of range, `scale_max` below `scale` or without `restore_size`; when
            called, sides that the scale does not divide where they are not restored.
    """

    def __init__(
        self, scale: float = 4, scale_max: float | None = None, restore_size: bool = False
    ) -> None:
        require_within("scale", scale, least=1, most=_LARGEST)
        if scale_max is not None:
            require_within("scale_max", scale_max, least=scale, most=_LARGEST)
            if not restore_size:
                raise UserError(
                    "gives every sample another size; add restore_size: true",
                    where=f"{KEY}.scale_max",
                )
        scale = int(scale) if scale == int(scale) else scale
        super().__init__(scale=scale, scale_max=scale_max, restore_size=restore_size)
        self.scale, self.scale_max, self.restore_size = scale, scale_max, restore_size
        self.multiple = scale if isinstance(scale, int) and not restore_size else 1

    def __call__(self, image: Tensor, generator: torch.Generator) -> Tensor:
        """(C, H, W) → (C, H / scale, W / scale) or, restored, (C, H, W); overshoots at edges."""
        scale: float = self.scale
        if self.scale_max is not None:
            scale = float(uniform(self.scale, self.scale_max, generator))
        height, width = image.shape[-2:]
        if self.restore_size:
            # Sides of ceil(H / scale), as MATLAB's; enlarged by the same scale they cover the
            # image, and what they cover beyond it is cut off: nothing is shifted or stretched.
            return imresize(imresize(image, 1 / scale), scale)[..., :height, :width]
        rows, columns = self._divided(height, width)
        # 1 / scale is rounded, and the ceiling of a side may be one too many.
        return imresize(image, 1 / scale)[..., :rows, :columns]

    def _divided(self, height: int, width: int) -> tuple[int, int]:
        rows, columns = round(height / self.scale), round(width / self.scale)
        wrong = max(abs(rows * self.scale - height), abs(columns * self.scale - width))
        if wrong > 1e-6 or not rows or not columns:
            mend = "" if isinstance(self.scale, int) else ", or set restore_size: true"
            raise UserError(
                f"{width}x{height} does not divide by the scale {self.scale}; "
                f"choose a crop that does{mend}",
                where="data.crop",
            )
        return rows, columns
