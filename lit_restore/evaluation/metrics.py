"""PSNR and SSIM in float64, as the restoration literature's MATLAB scripts define them.

Libraries disagree on both by up to 1.3 dB and 0.13 (another luma, other windows, padded maps,
sample variance), so they are written out here and tested on golden values. Everything works on
one image at a time, on values in [0, 255]: a mean over a set is the mean of the images' values.
"""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy.ndimage import correlate1d

Colour: TypeAlias = Literal["rgb", "y", "y_uint8"]
Metric: TypeAlias = Literal["psnr", "ssim"]
Values: TypeAlias = npt.NDArray[Any]
Floats: TypeAlias = npt.NDArray[np.float64]

_PEAK = 255.0
_RADIUS, _WIDTH = 5, 1.5
_C1, _C2 = (0.01 * _PEAK) ** 2, (0.03 * _PEAK) ** 2
_LUMA = np.array([65.481, 128.553, 24.966])


def psnr(estimate: Values, truth: Values, *, border: int = 0) -> float:
    """Peak signal-to-noise ratio, 10 log10(255² / MSE), in dB.

    Args:
        estimate: (H, W) or (H, W, C), values in [0, 255] of any type.
        truth: of the same shape.
        border: pixels shaved from every side.

    Returns:
        dB; infinite for identical images.

    Raises:
        ValueError: the shapes differ, or nothing is left inside the border.
    """
    a, b = _pair(estimate, truth, border, least=1)
    mse = float(np.mean((a - b) ** 2))
    return float("inf") if mse == 0 else float(10 * np.log10(_PEAK**2 / mse))


def ssim(estimate: Values, truth: Values, *, border: int = 0) -> float:
    """Structural similarity (Wang et al. 2004): the mean over the map, then over the channels.

    Gaussian window of 11x11 pixels with σ = 1.5, K1 = 0.01, K2 = 0.03, L = 255, population
    moments; only windows wholly inside the image count.

    Args:
        estimate: (H, W) or (H, W, C), values in [0, 255] of any type.
        truth: of the same shape.
        border: pixels shaved from every side first.

    Raises:
        ValueError: the shapes differ, or less than one window is left inside the border.
    """
    a, b = _pair(estimate, truth, border, least=2 * _RADIUS + 1)
    if a.ndim == 2:
        a, b = a[..., None], b[..., None]
    means = [_similarity(a[..., c], b[..., c]) for c in range(a.shape[2])]
    return float(np.mean(means))


def luma(rgb: Values, *, rounded: bool = False) -> Floats:
    """Y = 16 + (65.481 R + 128.553 G + 24.966 B) / 255, BT.601 in studio swing (`rgb2ycbcr`).

    Args:
        rgb: (H, W, 3) in [0, 255]. A grey image has no Y: it is measured as it is.
        rounded: round half up to whole numbers, as MATLAB does with uint8 images; the PyTorch
            papers do not, and differ by 0.003 to 0.03 dB.

    Returns:
        (H, W), in [16, 235].
    """
    assert rgb.ndim == 3, rgb.shape
    assert rgb.shape[2] == 3, rgb.shape
    # The sum first, then the division: of the orders tried, the one that breaks the few exact ties
    # of uint8 images (4 pixels of 262,144 in a photograph, 2e-5 dB) as the golden values do.
    y: Floats = 16 + rgb.astype(np.float64) @ _LUMA / 255
    return np.floor(y + 0.5) if rounded else y


def in_colour(image: Values, colour: Colour) -> Values:
    """What is measured of an image (H, W, 1 or 3): all of it, or its luma where it has colours."""
    if colour == "rgb" or image.ndim == 2 or image.shape[2] == 1:
        return image
    return luma(image, rounded=colour == "y_uint8")


def measure(
    metric: Metric, estimate: Values, truth: Values, *, colour: Colour = "rgb", border: int = 0
) -> float:
    """One metric of one image, (H, W, 1 or 3) in [0, 255].

    Raises:
        ValueError: as `psnr` and `ssim`.
    """
    function = {"psnr": psnr, "ssim": ssim}[metric]
    return function(in_colour(estimate, colour), in_colour(truth, colour), border=border)


def _pair(estimate: Values, truth: Values, border: int, least: int) -> tuple[Floats, Floats]:
    if estimate.shape != truth.shape:
        raise ValueError(f"sizes differ: {_size(estimate)} and {_size(truth)}")
    inside = min(truth.shape[:2]) - 2 * border
    if inside < least:
        raise ValueError(f"{_size(truth)} is too small for border {border}")
    cut = slice(border, -border or None)
    return estimate[cut, cut].astype(np.float64), truth[cut, cut].astype(np.float64)


def _size(image: Values) -> str:
    height, width, *channels = image.shape
    return f"{width}x{height}" + "".join(f" ({c} channels)" for c in channels)


def _window() -> Floats:
    x = np.arange(-_RADIUS, _RADIUS + 1)
    weights = np.exp(-0.5 * (x / _WIDTH) ** 2)
    window: Floats = weights / weights.sum()
    return window


def _smooth(image: Floats) -> Floats:
    """Gaussian means of all windows inside the image: (H - 10, W - 10)."""
    for axis in (0, 1):
        image = correlate1d(image, _window(), axis=axis)
    return image[_RADIUS:-_RADIUS, _RADIUS:-_RADIUS]


def _similarity(a: Floats, b: Floats) -> float:
    mean_a, mean_b = _smooth(a), _smooth(b)
    variance_a = _smooth(a * a) - mean_a**2
    variance_b = _smooth(b * b) - mean_b**2
    covariance = _smooth(a * b) - mean_a * mean_b
    ratio = (2 * mean_a * mean_b + _C1) * (2 * covariance + _C2)
    ratio /= (mean_a**2 + mean_b**2 + _C1) * (variance_a + variance_b + _C2)
    return float(ratio.mean())
