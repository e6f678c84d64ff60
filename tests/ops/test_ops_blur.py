"""Blur kernels against their moments and transfer functions, and convolution against its sum."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.special import j1

from lit_restore.ops.blur import (
    convolve,
    convolve_separable,
    disk_kernel,
    gaussian_kernel,
    path_kernel,
)


def mean(kernel: torch.Tensor) -> tuple[float, float]:
    """Centre of mass, rows and columns from the middle."""
    rows, columns = (torch.arange(n, dtype=torch.float64) - n // 2 for n in kernel.shape)
    return (kernel.sum(1) @ rows).item(), (kernel.sum(0) @ columns).item()


@pytest.mark.parametrize("sigma", [0.8, 1.7, 4.0])
def test_a_gaussian_has_its_variance(sigma: float) -> None:
    kernel = gaussian_kernel(sigma, math.ceil(6 * sigma))
    place = torch.arange(len(kernel), dtype=torch.float64) - len(kernel) // 2
    assert kernel.sum().item() == pytest.approx(1, abs=1e-14)
    assert (kernel @ place).item() == pytest.approx(0, abs=1e-14)
    assert (kernel @ place.square()).item() == pytest.approx(sigma**2, rel=2e-4)


def test_a_gaussian_of_no_width_is_one_pixel() -> None:
    assert gaussian_kernel(0.0, 2).tolist() == [0, 0, 1, 0, 0]


@pytest.mark.parametrize("radius", [0.3, 0.5, 1.0, 2.5, 6.0, 7.3])
def test_a_disk_sums_to_one_about_its_centre_with_its_second_moment(radius: float) -> None:
    kernel = disk_kernel(radius)
    assert kernel.sum().item() == pytest.approx(1, abs=1e-14)
    assert mean(kernel) == pytest.approx((0, 0), abs=1e-12)
    assert torch.allclose(kernel, kernel.T)
    # One pixel far inside weighs 1 / (area of the disk).
    if radius > 1:
        middle = kernel[len(kernel) // 2, len(kernel) // 2].item()
        assert middle == pytest.approx(1 / (math.pi * radius**2), rel=1e-12)


def test_a_disk_covers_of_each_pixel_what_fine_sampling_finds() -> None:
    radius, fine = 2.3, 400
    kernel = disk_kernel(radius)
    place = (torch.arange(5 * fine, dtype=torch.float64) + 0.5) / fine - 2.5
    inside = (place[:, None] ** 2 + place**2 <= radius**2).double()
    area = torch.nn.functional.avg_pool2d(inside[None], fine)[0]
    assert kernel.shape == (5, 5)
    assert torch.allclose(kernel, area / (math.pi * radius**2), atol=1e-5)


@pytest.mark.parametrize("radius", [5.0, 8.0])
def test_the_transfer_function_of_a_disk_vanishes_where_the_bessel_function_does(
    radius: float,
) -> None:
    profile = disk_kernel(radius).sum(0)
    place = torch.arange(len(profile), dtype=torch.float64) - len(profile) // 2

    def transfer(frequency: float) -> float:
        return (profile @ torch.cos(2 * math.pi * frequency * place)).item()

    def thin_lens(frequency: float) -> float:
        argument = 2 * math.pi * radius * frequency
        return 2 * j1(argument) / argument

    zero = 3.8317059702 / (2 * math.pi * radius)
    assert transfer(0.98 * zero) > 0 > transfer(1.02 * zero)
    assert transfer(0.5 * zero) == pytest.approx(thin_lens(0.5 * zero), abs=0.01)


def test_a_path_keeps_its_centre_of_mass_between_pixels() -> None:
    points = torch.tensor([[0.25, -1.5], [2.0, 0.75]], dtype=torch.float64)
    kernel = path_kernel(points)
    assert kernel.shape == (5, 5)
    assert kernel.sum().item() == pytest.approx(1)
    assert mean(kernel) == pytest.approx((1.125, -0.375), abs=1e-14)
    assert path_kernel(torch.zeros(1, 2)).tolist() == [[0, 0, 0], [0, 1, 0], [0, 0, 0]]


def test_convolution_is_the_sum_over_shifted_mirrored_images() -> None:
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(2, 6, 5, generator=generator, dtype=torch.float64)
    kernel = torch.rand(5, 3, generator=generator, dtype=torch.float64)
    padded = torch.nn.functional.pad(image, (1, 1, 2, 2), mode="reflect")
    expected = torch.zeros_like(image)
    for row in range(5):
        for column in range(3):
            # The true convolution: out(i) = Σ_k kernel(k) image(i - k).
            shifted = padded[:, 4 - row : 10 - row, 2 - column : 7 - column]
            expected += kernel[row, column] * shifted
    assert torch.allclose(convolve(image, kernel), expected, rtol=1e-12)


def test_separable_convolution_is_that_with_the_outer_product() -> None:
    image = torch.rand(3, 9, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    kernel = gaussian_kernel(1.3, 6)  # wider than the image: mirrored over and over
    both = convolve(image, torch.outer(kernel, kernel))
    assert torch.allclose(convolve_separable(image, kernel), both, rtol=1e-12)
