"""Blur kernels that sum to 1, and convolution with mirrored borders.

Kernels are float64, of odd sides, centred on their middle pixel; convolution is the true one (a
kernel's entry at row +1 moves the image one row down).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

_SHARP = 1e-3
"""A standard deviation below which a sampled Gaussian is one pixel."""


def gaussian_kernel(sigma: Tensor | float, radius: int) -> Tensor:
    """A sampled Gaussian, one-dimensional.

    Args:
        sigma: standard deviation in pixels, ≥ 0; a scalar tensor keeps its device.
        radius: taps on either side.

    Returns:
        (2 · radius + 1,) float64. Of sigmas from 0.8 on and a radius of at least 6 sigma, the
        variance is sigma² within 2e-4 of it; narrower ones are narrower still when sampled.
    """
    width = torch.as_tensor(sigma, dtype=torch.float64).clamp(min=_SHARP)
    place = torch.arange(-radius, radius + 1, dtype=torch.float64, device=width.device)
    weights = torch.exp(-0.5 * (place / width) ** 2)
    return weights / weights.sum()


def disk_kernel(radius: float) -> Tensor:
    """A disk, each pixel weighing the area of it that the disk covers.

    Its transfer function is that of a thin lens out of focus, 2 J₁(2π r f) / (2π r f), smoothed by
    the pixel; the first zero lies at f = 0.6098 / r cycles a pixel.

    Args:
        radius: pixels, > 0.

    Returns:
        (n, n) float64, n odd, the least that holds the disk.
    """
    reach = math.ceil(radius - 0.5)
    edges = torch.arange(-reach, reach + 2, dtype=torch.float64) - 0.5
    area = _disk_below(edges[:, None], edges[None, :], radius)
    kernel = area[1:, 1:] - area[:-1, 1:] - area[1:, :-1] + area[:-1, :-1]
    return kernel.clamp(min=0) / kernel.sum()


def _disk_below(y: Tensor, x: Tensor, radius: float) -> Tensor:
    """Signed area of the disk within the rectangle from 0 to (x, y), odd in both.

    For x, y ≥ 0 it is ∫₀ˣ min(√(r² - u²), y) du: a rectangle up to u = √(r² - y²), and then the
    area under the circle.
    """
    sign = torch.sign(x) * torch.sign(y)
    x, y = x.abs().clamp(max=radius), y.abs().clamp(max=radius)
    corner = (radius**2 - y**2).clamp(min=0).sqrt()
    flat = y * torch.minimum(x, corner)
    return sign * (
        flat + _under_circle(torch.maximum(x, corner), radius) - _under_circle(corner, radius)
    )


def _under_circle(x: Tensor, radius: float) -> Tensor:
    """∫₀ˣ √(r² - u²) du for 0 ≤ x ≤ r."""
    x = x.clamp(max=radius)
    return 0.5 * (x * (radius**2 - x**2).clamp(min=0).sqrt() + radius**2 * torch.asin(x / radius))


def path_kernel(points: Tensor) -> Tensor:
    """The blur of a point that visits these places for equal times.

    Each point is shared out among the four pixels around it, linearly by nearness, which keeps the
    centre of mass.

    Args:
        points: (N, 2) rows and columns, in pixels from the centre.

    Returns:
        (n, n) float64 on the CPU, n odd, the least that holds the path.
    """
    points = points.to("cpu", torch.float64)
    reach = max(1, math.ceil(float(points.abs().max())))
    side = 2 * reach + 1
    low = points.floor()
    share = points - low
    kernel = torch.zeros(side * side, dtype=torch.float64)
    for down in (0, 1):
        for across in (0, 1):
            corner = (low + torch.tensor([down, across])).long() + reach
            near = (share[:, 0] if down else 1 - share[:, 0]) * (
                share[:, 1] if across else 1 - share[:, 1]
            )
            inside = corner.clamp(0, side - 1)  # beyond lies only what has no share
            kernel.index_add_(0, inside[:, 0] * side + inside[:, 1], near)
    return (kernel / len(points)).view(side, side)


def convolve(images: Tensor, kernel: Tensor) -> Tensor:
    """Convolve all planes with one kernel, by Fourier transforms.

    Args:
        images: (..., H, W) float32 or float64.
        kernel: (n, m), odd sides, of the same type and device.

    Returns:
        (..., H, W); beyond its borders an image is its mirror image (3 2 1 | 0 1 2 3 …).
    """
    rows, columns = (side // 2 for side in kernel.shape)
    padded = mirrored(mirrored(images, rows, -2), columns, -1)
    size = padded.shape[-2:]
    spectrum = torch.fft.rfft2(padded) * torch.fft.rfft2(kernel, s=size)
    # The first n - 1 rows are those where the transform's period wraps around.
    blurred: Tensor = torch.fft.irfft2(spectrum, s=size)
    return blurred[..., 2 * rows :, 2 * columns :]


def convolve_separable(images: Tensor, kernel: Tensor) -> Tensor:
    """Convolve along columns and along rows with one symmetric kernel.

    Args:
        images: (C, H, W).
        kernel: (n,), n odd, of the same type and device.

    Returns:
        (C, H, W), borders as in `convolve`.
    """
    radius = len(kernel) // 2
    planes = mirrored(mirrored(images, radius, -2), radius, -1)[:, None]
    return F.conv2d(F.conv2d(planes, kernel.view(1, 1, -1, 1)), kernel.view(1, 1, 1, -1))[:, 0]


def mirrored(x: Tensor, extra: int, axis: int) -> Tensor:
    """`x` with `extra` more entries at both ends of an axis, by reflection, however many."""
    size = x.shape[axis]
    period = max(1, 2 * size - 2)
    index = torch.arange(-extra, size + extra, device=x.device) % period
    return x.index_select(axis, torch.minimum(index, period - index) if size > 1 else index)
