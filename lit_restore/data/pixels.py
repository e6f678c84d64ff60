"""Pictures as arrays on their way into a shard: which axis is which, squared, padded."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image

from lit_restore.errors import UserError
from lit_restore.io import arrays
from lit_restore.io.image_headers import PIXEL_LIMIT, check_size

Pixels = npt.NDArray[np.uint8]

_CHANNELS = (1, 3)


def channel_axis(shape: Sequence[int], *, where: str) -> int | None:
    """Which axis of a picture's array holds its channels: 0, 2, or None for (H, W), grey.

    Args:
        shape: (H, W), (H, W, 1 or 3) or (1 or 3, H, W).
        where: named in the error line.

    Raises:
        UserError: no such shape, one that could be both, or a picture above the size limit.
    """
    told = "x".join(map(str, shape)) or "one number"
    if len(shape) == 2:
        axis = None
    elif len(shape) == 3 and (shape[0] in _CHANNELS) != (shape[2] in _CHANNELS):
        axis = 0 if shape[0] in _CHANNELS else 2
    elif len(shape) == 3 and shape[0] in _CHANNELS:
        raise UserError(f"rows of {told} could be HxWxC or CxHxW; give --shape", where=where)
    elif len(shape) == 1:
        mend = "give --shape 28x28, or --shape 3x32x32 where all of the red comes first"
        raise UserError(f"rows of {told} numbers are flat; {mend}", where=where)
    else:
        raise UserError(
            f"rows of {told} are no pictures; HxW, HxWx1, HxWx3, 1xHxW and 3xHxW are", where=where
        )
    height, width = (side for k, side in enumerate(shape) if k != axis)
    check_size(width, height, where)
    return axis


def row_pixels(data: bytes, *, name: str) -> Pixels:
    """The picture in a `.npy` file of uint8 numbers, as `channel_axis` reads it.

    Args:
        data: the whole file.
        name: named in the error line.

    Returns:
        (H, W, 1) or (H, W, 3), C-contiguous.

    Raises:
        UserError: no such array.
    """
    array = arrays.parse_numbers(data, name=name)
    if array.dtype != np.uint8:
        raise UserError(f"{array.dtype} are no levels 0 to 255 (uint8)", where=name)
    axis = channel_axis(array.shape, where=name)
    pixels = array[..., None] if axis is None else np.moveaxis(array, axis, 2)
    return np.ascontiguousarray(pixels, np.uint8)


def adm_square(pixels: Pixels, size: int) -> Pixels:
    """The middle square of a picture, scaled to `size`, as ADM prepares ImageNet.

    Halved with a box filter while the shorter side is at least twice `size`, then bicubic so that
    it is `size`, then cropped; a smaller picture is enlarged. Source: Dhariwal and Nichol
    (arXiv 2105.05233), `center_crop_arr` in openai/guided-diffusion, which DiT, SiT and DiMSUM
    share; Pillow's filters, on uint8.

    Args:
        pixels: (H, W, 3).
        size: side of the result.

    Returns:
        (size, size, 3).
    """
    image = Image.fromarray(pixels)
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    sides = (round(image.width * scale), round(image.height * scale))
    image = image.resize(sides, Image.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return np.asarray(image.crop((left, top, left + size, top + size)), np.uint8)


def square_pixels(pixels: Pixels, side: int) -> Pixels:
    """The picture's middle square, scaled to `side` as `adm_square` does it.

    Args:
        pixels: (H, W, 1 or 3).
        side: of the result, pixels.

    Returns:
        (side, side, 1 or 3), as many channels as given.

    Raises:
        UserError: a picture so narrow that, scaled, it is above the size limit.
    """
    short, long = sorted(pixels.shape[:2])
    if side * side * long > PIXEL_LIMIT * short:
        told = f"is {pixels.shape[1]}x{pixels.shape[0]}, too narrow to be scaled to {side}"
        raise UserError(told)
    if pixels.shape[2] == 3:
        return adm_square(pixels, side)
    # Channels are filtered by themselves, so that one of three equal ones is the grey picture's.
    return adm_square(np.repeat(pixels, 3, axis=2), side)[..., :1]


def padded(pixels: Pixels, side: int) -> Pixels:
    """The picture in the middle of a square of zeros; the odd row or column goes below, right.

    Args:
        pixels: (H, W, C).
        side: of the square, pixels.

    Returns:
        (side, side, C).

    Raises:
        UserError: the picture is larger.
    """
    height, width, channels = pixels.shape
    if max(height, width) > side:
        raise UserError(f"is {width}x{height}, larger than --pad {side}")
    result = np.zeros((side, side, channels), np.uint8)
    top, left = (side - height) // 2, (side - width) // 2
    result[top : top + height, left : left + width] = pixels
    return result
