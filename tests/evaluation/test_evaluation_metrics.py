"""PSNR and SSIM on the golden values of spec evaluation.md §1.2, and against scikit-image."""

from __future__ import annotations

import hashlib
import math
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.ndimage import correlate1d
from skimage.metrics import structural_similarity

from lit_restore.evaluation.metrics import _window, in_colour, luma, measure, psnr, ssim
from lit_restore.io.images import read_picture
from lit_restore.io.quantise import from_pixels, to_uint8
from lit_restore.ops.resize import imresize_pixels

DEV_VAL = Path(__file__).parents[2].parent / "shared" / "data" / "dev_val.tar"


def g1() -> tuple[np.ndarray, np.ndarray]:
    y, x = np.mgrid[0:64, 0:96]
    a = np.stack(
        [(x * 5 + y * 3) % 256, (x * y // 7) % 256, (x * x // 11 + y * 2) % 256], -1
    ).astype(np.uint8)
    b = ((a.astype(int) * 7 + 13 * ((x + y) % 17)[..., None] + 40) // 8).clip(0, 255)
    return a, b.astype(np.uint8)


def g2(name: str) -> tuple[np.ndarray, np.ndarray]:
    import skimage.data

    hr = getattr(skimage.data, name)()[..., :3]
    hr = hr[: hr.shape[0] // 4 * 4, : hr.shape[1] // 4 * 4]
    return hr, imresize_pixels(imresize_pixels(hr, 1 / 4), 4)


# (colour, border) → PSNR, SSIM
G1 = {
    ("rgb", 0): (26.171603, 0.849895),
    ("rgb", 4): (26.397137, 0.857180),
    ("y", 0): (28.872529, 0.879241),
    ("y", 4): (29.284855, 0.886601),
    ("y_uint8", 4): (29.278826, None),
}
G2 = {
    "astronaut": {
        ("rgb", 0): (25.382539, 0.816384),
        ("rgb", 4): (25.336729, 0.813929),
        ("y", 0): (26.884413, 0.845113),
        ("y", 4): (26.838182, 0.842686),
        ("y_uint8", 4): (26.834722, None),
    },
    "chelsea": {
        ("rgb", 0): (30.168707, 0.785698),
        ("rgb", 4): (30.047061, 0.780792),
        ("y", 0): (31.596128, 0.810866),
        ("y", 4): (31.473502, 0.806263),
        ("y_uint8", 4): (31.459399, None),
    },
    "coffee": {
        ("rgb", 0): (25.799134, 0.734768),
        ("rgb", 4): (25.797198, 0.736504),
        ("y", 0): (27.290459, 0.763117),
        ("y", 4): (27.291364, 0.764821),
        ("y_uint8", 4): (27.284727, None),
    },
}


def assert_golden(estimate, truth, table) -> None:
    for (colour, border), (decibels, similarity) in table.items():
        # Rounded luma: a few pixels lie exactly on a half, and which side they fall depends on
        # whether this machine's matrix product fuses multiply and add.
        tolerance = 3e-5 if colour == "y_uint8" else 1e-5
        found = measure("psnr", estimate, truth, colour=colour, border=border)
        assert found == pytest.approx(decibels, abs=tolerance), (colour, border)
        if similarity is not None:
            found = measure("ssim", estimate, truth, colour=colour, border=border)
            assert found == pytest.approx(similarity, abs=1e-6), (colour, border)


def test_g1_pair_is_the_specified_one() -> None:
    a, b = g1()
    assert (a.sum(), b.sum()) == (2128602, 2186586)
    assert hashlib.sha256(a.tobytes()).hexdigest()[:16] == "4c09cb4558e75c66"
    assert hashlib.sha256(b.tobytes()).hexdigest()[:16] == "3c6b429e55356439"


def test_g1() -> None:
    a, b = g1()
    assert_golden(b, a, G1)


@pytest.mark.parametrize("name", G2)
def test_g2(name: str) -> None:
    hr, up = g2(name)
    assert_golden(up, hr, G2[name])


G3 = {2: (33.6614, 0.9299), 3: (30.3922, 0.8682), 4: (28.4207, 0.8104)}


@pytest.mark.parametrize("factor", G3)
def test_g3_the_literatures_bicubic_row_of_set5(factor: int) -> None:
    if not DEV_VAL.exists():
        pytest.skip("needs ../shared/data/dev_val.tar")
    rows, rounded = [], []
    with tarfile.open(DEV_VAL) as tar:
        members = [m for m in tar if m.name.startswith("set5/")]
        pictures = [tar.extractfile(m).read() for m in members if m.isfile()]
    for data in pictures:
        y = luma(read_picture(data).pixels, rounded=True)
        y = y[: y.shape[0] // factor * factor, : y.shape[1] // factor * factor]
        lr = imresize_pixels(y, 1 / factor)
        for low, table in ((lr, rows), (np.floor(lr.clip(0, 255) + 0.5), rounded)):
            up = np.floor(imresize_pixels(low, factor).clip(0, 255) + 0.5)
            table.append((psnr(up, y, border=factor), ssim(up, y, border=factor)))
    assert len(rows) == 5
    assert np.mean(rows, 0)[0] == pytest.approx(G3[factor][0], abs=2e-4)
    assert np.mean(rows, 0)[1] == pytest.approx(G3[factor][1], abs=1e-4)
    assert abs(np.mean(rounded, 0)[0] - G3[factor][0]) > 2e-4  # an LR of 8 bits is another row


def test_full_range_luma_is_not_ours() -> None:
    hr, up = g2("coffee")
    weights = np.array([0.299, 0.587, 0.114])
    wrong = psnr(up @ weights, hr @ weights)
    assert wrong == pytest.approx(27.290459 - 20 * math.log10(255 / 219), abs=0.01)


def test_reflect_padded_ssim_is_not_ours() -> None:
    def padded(a: np.ndarray, b: np.ndarray) -> float:
        smooth = lambda x: correlate1d(correlate1d(x, _window(), 0), _window(), 1)  # noqa: E731
        ma, mb = smooth(a), smooth(b)
        va, vb, cov = smooth(a * a) - ma**2, smooth(b * b) - mb**2, smooth(a * b) - ma * mb
        c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
        top = (2 * ma * mb + c1) * (2 * cov + c2)
        return float((top / ((ma**2 + mb**2 + c1) * (va + vb + c2))).mean())

    hr, up = (luma(x) for x in g2("coffee"))
    assert abs(padded(up, hr) - 0.763117) > 1e-4
    assert ssim(up, hr) == pytest.approx(0.763117, abs=1e-6)


def oracle_pairs() -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(0)
    sizes = [(11, 11), (11, 40), (17, 12), *[tuple(rng.integers(12, 64, 2)) for _ in range(13)]]
    pairs = [
        (rng.integers(0, 256, (*s, 3)).astype(np.uint8), rng.integers(0, 256, (*s, 3), np.uint8))
        for s in sizes
    ]
    flat = np.full((24, 30, 3), 127, np.uint8)
    noise = (flat + rng.integers(-1, 2, flat.shape)).astype(np.uint8)
    grey = rng.integers(0, 256, (20, 20, 1), np.uint8)
    black = np.zeros_like(flat)
    return [*pairs, (flat, flat), (flat, noise), (flat, black), (grey, grey // 2)]


def test_ssim_equals_scikit_image_on_twenty_pairs() -> None:
    pairs = oracle_pairs()
    assert len(pairs) == 20
    for a, b in pairs:
        expected = structural_similarity(
            a,
            b,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            data_range=255,
            channel_axis=2,
        )
        assert ssim(a, b) == pytest.approx(expected, abs=1e-10)


def test_ssim_in_float32_would_not_do() -> None:
    rng = np.random.default_rng(1)
    flat = np.full((32, 32), 250.0)
    noise = flat + rng.normal(0, 0.05, flat.shape)
    smooth = lambda x: correlate1d(correlate1d(x, _window(), 0), _window(), 1)[5:-5, 5:-5]  # noqa: E731

    def variance(x: np.ndarray) -> np.ndarray:
        return smooth(x * x) - smooth(x) ** 2

    single = variance(noise.astype(np.float32)).astype(np.float64)
    assert np.abs(single - variance(noise)).max() > 1e-4


def test_identical_images_are_infinite() -> None:
    a, _ = g1()
    assert psnr(a, a) == math.inf
    assert ssim(a, a) == 1.0


def test_a_grey_image_is_measured_as_it_is() -> None:
    a, b = (x[..., :1] for x in g1())
    assert in_colour(a, "y") is a
    rgb = [np.repeat(x, 3, axis=2) for x in (b, a)]
    lift = measure("psnr", *rgb, colour="y") - measure("psnr", b, a, colour="y")
    assert lift == pytest.approx(20 * math.log10(255 / 219), abs=1e-6)


def test_rounded_luma_holds_whole_numbers() -> None:
    a, _ = g1()
    y = luma(a, rounded=True)
    assert (y == np.floor(y)).all()
    assert np.abs(y - luma(a)).max() <= 0.5
    white = np.full((1, 1, 3), 255)
    assert (luma(white), luma(0 * white)) == (pytest.approx(235), pytest.approx(16))


@pytest.mark.parametrize(("border", "metric"), [(8, "psnr"), (3, "ssim")])
def test_too_small_for_the_border(border: int, metric: str) -> None:
    a = np.zeros((16, 16, 3), np.uint8)
    with pytest.raises(ValueError, match=f"16x16 .* is too small for border {border}"):
        measure(metric, a, a, border=border)


def test_sizes_that_differ() -> None:
    with pytest.raises(ValueError, match=r"sizes differ: 4x5 .* and 5x4"):
        psnr(np.zeros((5, 4, 3)), np.zeros((4, 5, 3)))


# Quantisation -------------------------------------------------------------------------------------


def test_rounding_is_half_up_and_clamped() -> None:
    values = torch.tensor([-1.0, 0.5 / 255, 1.5 / 255, 2.5 / 255, 0.999, 7.0], dtype=torch.float64)
    pixels = to_uint8(values.view(1, 1, 2, 3))
    assert pixels.ravel().tolist() == [0, 1, 2, 3, 255, 255]
    assert pixels.shape == (1, 2, 3, 1)


def test_all_levels_survive_float32_and_bfloat16_does_not_round_twice() -> None:
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)
    assert (to_uint8(from_pixels(levels))[0] == levels).all()
    x = from_pixels(levels).bfloat16()
    expected = np.floor(255 * x.double().numpy().clip(0, 1) + 0.5)
    assert (to_uint8(x)[0, ..., 0] == expected[0, 0]).all()


def test_nan_becomes_black_and_infinity_is_clamped() -> None:
    x = torch.tensor([math.nan, math.inf, -math.inf]).view(1, 3, 1, 1)
    assert to_uint8(x).ravel().tolist() == [0, 255, 0]


def test_sixteen_bits_are_divided_by_their_white() -> None:
    pixels = np.array([[[0], [65535], [257 * 100]]], np.uint16)
    assert from_pixels(pixels).ravel().tolist() == pytest.approx([0, 1, 100 / 255])
