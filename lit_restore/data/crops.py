"""The same window of all pictures of a sample, and the same turn.

A sample's degraded picture may be smaller than its clean one by a whole scale; its restored picture
has the clean one's size.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch

from lit_restore.data.batch import Sample
from lit_restore.errors import UserError

Pixels = npt.NDArray[np.uint8]


def random_crop(sample: Sample, size: int, draw: np.random.Generator) -> Sample:
    """A random window of a sample.

    Args:
        sample: its pictures (H, W, 3) and (H / s, W / s, 3) for a whole scale s.
        size: side of the window of the clean picture; a multiple of s.
        draw: draws the place, on the coarser grid.

    Raises:
        UserError: the picture is smaller than the window, or the sample's are not aligned.
    """
    scale = _scale(sample, size)
    height, width = (side // scale for side in sample.image.shape[:2])
    side = size // scale
    top = int(draw.integers(height - side + 1))
    left = int(draw.integers(width - side + 1))
    return _window(sample, top, left, (side, side), scale)


def centre_crop(sample: Sample, size: int) -> Sample:
    """The middle window of a sample; as `random_crop`."""
    scale = _scale(sample, size)
    side = size // scale
    height, width = (side // scale for side in sample.image.shape[:2])
    return _window(sample, (height - side) // 2, (width - side) // 2, (side, side), scale)


def middle(sample: Sample, size: int, multiple: int = 1) -> Sample:
    """The middle of a sample of any size, to look at.

    Args:
        sample: its pictures (H, W, 3) and (H / s, W / s, 3) for a whole scale s.
        size: the longest side that is kept of the clean picture.
        multiple: of which the sides that are kept are, where there is no degraded picture.
    """
    height, width = sample.image.shape[:2]
    low = sample.degraded
    scale = multiple if low is None else max(1, height // max(1, low.shape[0]))
    sides = (min(height, size) // scale, min(width, size) // scale)
    top, left = (height // scale - sides[0]) // 2, (width // scale - sides[1]) // 2
    return _window(sample, top, left, sides, scale)


def turned(sample: Sample, *, mirror: bool, turns: int) -> Sample:
    """Mirrored left–right, then turned by quarters counter-clockwise; may be views."""
    if not mirror and not turns:
        return sample  # copied once, into its batch
    others = (sample.degraded, sample.restored)
    degraded, restored = (None if p is None else _turn(p, mirror, turns) for p in others)
    image = _turn(sample.image, mirror, turns)
    return replace(sample, image=image, degraded=degraded, restored=restored)


def _scale(sample: Sample, size: int) -> int:
    height, width = sample.image.shape[:2]
    if min(height, width) < size:
        raise UserError(f"{width}x{height} is smaller than the {size} crop; lower the crop")
    if sample.restored is not None and sample.restored.shape != sample.image.shape:
        other = f"{sample.restored.shape[1]}x{sample.restored.shape[0]}"
        raise UserError(f"the restored image is {other}, the clean one {width}x{height}")
    degraded = sample.degraded
    if degraded is None:
        return 1
    scale: int = height // max(1, degraded.shape[0])
    if scale < 1 or degraded.shape[:2] != (height // scale, width // scale) or size % scale:
        low = f"{degraded.shape[1]}x{degraded.shape[0]}"
        raise UserError(
            f"the degraded image is {low} for {width}x{height}: "
            f"no whole scale that divides the {size} crop"
        )
    return scale


def _window(sample: Sample, top: int, left: int, sides: tuple[int, int], scale: int) -> Sample:
    bottom, right = top + sides[0], left + sides[1]
    rows = slice(top * scale, bottom * scale)
    columns = slice(left * scale, right * scale)
    low, restored = sample.degraded, sample.restored
    return replace(
        sample,
        image=sample.image[rows, columns],
        degraded=None if low is None else low[top:bottom, left:right],
        restored=None if restored is None else restored[rows, columns],
    )


def _turn(image: Pixels, mirror: bool, turns: int) -> Pixels:
    if not image.size:
        return image
    # PyTorch moves whole pixels where NumPy copies byte by byte: up to ten times as fast.
    planes = torch.from_numpy(np.require(image, requirements="W")).permute(2, 0, 1)[None]
    planes = planes.flip(-1) if mirror else planes
    rotated = torch.rot90(planes, turns, (-2, -1)) if turns else planes
    return np.ascontiguousarray(rotated[0].permute(1, 2, 0).numpy())
