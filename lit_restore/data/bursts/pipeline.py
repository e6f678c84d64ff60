"""A picture in, a burst of noisy raw frames and the linear picture to restore from it out.

The data of burst super-resolution (Bhat et al. 2021, arXiv 2101.10997, section 3.4), with the
camera model of Brooks et al. 2019 (arXiv 1811.11127) turned round. Against the published generator
intermediate pictures are not rounded to eight bits, a frame's motion is drawn about the reference's
place instead of 1.5 pixels off it, and what motion brings in from beyond the picture looks like
its edge instead of black.

Frames are restored in linear colours: the benchmark's PSNR is of those, without their outermost 40
pixels; `process` makes pictures of them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lit_restore.data.bursts.mosaic import mosaic, pack
from lit_restore.data.bursts.motion import SCALE, move_and_shrink
from lit_restore.data.bursts.noise import add_noise
from lit_restore.data.bursts.parameters import BurstOptions, BurstParameters, draw_parameters
from lit_restore.data.bursts.unprocessing import unprocess
from lit_restore.errors import UserError

_UNIT = 2 * SCALE
"""Target pixels along a side for each pixel of a packed frame."""


def synthesize_burst(
    image: Tensor,
    frames: int,
    generator: torch.Generator,
    options: BurstOptions | None = None,
) -> tuple[Tensor, Tensor, BurstParameters]:
    """Make a burst of one picture.

    Args:
        image: (3, H, W) sRGB in [0, 1]. What exceeds 8h + 2 border along a side is cut off at the
            bottom and the right, h being as large as it can be.
        frames: F, the reference first.
        generator: all randomness; on the image's device, or the CPU's.
        options: None for the defaults.

    Returns:
        (burst (F, 4, h, w): packed RGGB, noisy, in [0, 1]; target (3, 8h, 8w): linear camera RGB
        in [0, 1], packed pixel (r, c)'s red lying at (8r, 8c); what was drawn, in the image's type
        and on its device).

    Raises:
        UserError: the image is too small for one packed pixel, or has not three channels.
    """
    options = options or BurstOptions()
    cut = _cut(image, options.border)
    parameters = draw_parameters(frames, generator, options).to(image)
    linear = unprocess(cut, parameters)
    clean = pack(mosaic(move_and_shrink(linear, parameters.motion, options.border)))
    burst = add_noise(clean, parameters.shot, parameters.read, generator).clamp(0, 1)
    bottom, right = (side - options.border for side in linear.shape[-2:])
    target = linear[:, options.border : bottom, options.border : right]
    return burst, target, parameters


def _cut(image: Tensor, border: int) -> Tensor:
    channels, *sides = image.shape
    height, width = ((side - 2 * border) // _UNIT * _UNIT for side in sides)
    if channels != 3 or height < _UNIT or width < _UNIT:
        raise UserError(
            f"{tuple(image.shape)} makes no burst; RGB pictures of at least {_UNIT + 2 * border} "
            "pixels a side do",
            where="image",
        )
    return image[:, : height + 2 * border, : width + 2 * border]
