"""How much noise a picture holds, from the picture alone."""

from __future__ import annotations

import warnings

import numpy as np
from torch import Tensor

from lit_restore.errors import UserError

_SMALLEST = 5
"""Pixels of a side; below it a wavelet sees mostly its own continuation of the picture."""


def estimate_sigma(noisy: Tensor) -> float:
    """Standard deviation of white Gaussian noise, in image units.

    The median absolute deviation of the finest diagonal wavelet coefficients (Donoho and Johnstone
    1994), mean over the channels. Fine texture counts as noise; noise that was clipped, compressed
    or smoothed is underestimated.

    Args:
        noisy: (1, C, H, W).

    Returns:
        σ; 0 for a picture of one colour.

    Raises:
        UserError: the picture is too small to say.
    """
    from skimage.restoration import estimate_sigma as wavelet_mad

    height, width = noisy.shape[-2:]
    if min(height, width) < _SMALLEST:
        raise UserError(f"{width}x{height} is too small to estimate its noise; give --sigma 25")
    image = noisy[0].permute(1, 2, 0).double().numpy()
    with warnings.catch_warnings():
        # The median leaves out coefficients that are 0: of a black channel nothing is left.
        warnings.simplefilter("ignore", RuntimeWarning)
        levels = wavelet_mad(image, average_sigmas=False, channel_axis=-1)  # type: ignore[no-untyped-call]
    return float(np.nan_to_num(levels, nan=0.0).mean())
