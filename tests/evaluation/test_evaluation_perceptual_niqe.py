"""NIQE: the fit on known laws, the distance in closed form, published values."""

from __future__ import annotations

import tarfile
from pathlib import Path

import numpy as np
import pytest
from conftest import picture
from scipy.special import gamma
from test_evaluation_metrics import g2

from lit_restore.evaluation.metrics import luma
from lit_restore.evaluation.perceptual.niqe import (
    BLOCK,
    NIQE,
    _normalised,
    asymmetric_gaussian,
    features,
    open_niqe,
)
from lit_restore.evaluation.perceptual.weights import MissingWeights, WeightFolders
from lit_restore.io.images import read_picture

DEV_VAL = Path(__file__).parents[2].parent / "shared" / "data" / "dev_val.tar"


def window() -> np.ndarray:
    row = np.exp(-0.5 * (np.arange(-3, 4) / (7 / 6)) ** 2)
    return np.outer(row, row) / row.sum() ** 2


def published() -> NIQE:
    try:
        return open_niqe(WeightFolders.of())
    except MissingWeights as error:
        pytest.skip(str(error))


def noisy(height: int, width: int, seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(0, 8, (height, width, 3))
    return (picture(seed, height, width) + noise).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("shape", [0.8, 1.0, 2.0, 4.0])
@pytest.mark.parametrize("skew", [1.0, 1.7])
def test_the_fit_finds_the_law_of_a_sample(shape: float, skew: float) -> None:
    # |x| = scale · g^(1 / shape) with g of a gamma law; sides are taken in proportion to scales.
    rng = np.random.default_rng(0)
    left = rng.random(400_000) < 1 / (1 + skew)
    size = rng.gamma(1 / shape, size=len(left)) ** (1 / shape)
    found = asymmetric_gaussian(np.where(left, -size, skew * size))
    assert found == pytest.approx((shape, 1, skew), rel=0.02)


def test_a_normal_sample_has_shape_two_and_its_own_deviation() -> None:
    values = np.random.default_rng(1).normal(0, 3, 400_000)
    shape, left, right = asymmetric_gaussian(values)
    assert shape == pytest.approx(2, abs=0.02)
    assert (left, right) == pytest.approx((3 * np.sqrt(2),) * 2, rel=0.02)
    # β² Γ(3/α) / Γ(1/α) is the variance.
    assert right**2 * gamma(3 / shape) / gamma(1 / shape) == pytest.approx(9, rel=0.02)


def test_a_sample_on_one_side_has_no_fit() -> None:
    with np.errstate(all="ignore"):
        assert np.isnan(asymmetric_gaussian(np.ones((4, 4)))).all()
        assert np.isnan(asymmetric_gaussian(np.zeros((4, 4)))).all()


def test_local_contrast_is_its_equations() -> None:
    y = np.random.default_rng(2).integers(0, 256, (9, 11)).astype(float)
    padded = np.pad(y, 3, mode="edge")
    for i, j in ((0, 0), (4, 5), (8, 10)):
        around = padded[i : i + 7, j : j + 7]
        mean = (window() * around).sum()
        deviation = np.sqrt((window() * (around - mean) ** 2).sum())
        expected = (y[i, j] - mean) / (deviation + 1)
        assert _normalised(y, window())[i, j] == pytest.approx(expected, rel=1e-9)


def test_the_distance_is_mahalanobis() -> None:
    image = noisy(5 * BLOCK, 8 * BLOCK)
    found = features(image, window())
    assert found.shape == (40, 36)
    covariance = np.cov(found, rowvar=False)
    assert NIQE(found.mean(0), covariance, window())(image) == pytest.approx(0, abs=1e-6)
    # Moved along an eigenvector of variance v by d: d / √v.
    values, vectors = np.linalg.eigh(covariance)
    moved = found.mean(0) + 0.3 * vectors[:, -1]
    score = NIQE(moved, covariance, window())(image)
    assert score == pytest.approx(0.3 / np.sqrt(values[-1]), rel=1e-6)


def test_only_whole_blocks_count_and_luma_is_rounded() -> None:
    image = noisy(2 * BLOCK + 50, 2 * BLOCK + 3)
    whole = features(image[: 2 * BLOCK, : 2 * BLOCK], window())
    assert (features(image, window()) == whole).all()
    grey = luma(image, rounded=True)[..., None]
    assert (features(grey, window()) == whole).all()
    unrounded = luma(image)[..., None]
    assert (features(unrounded, window()) == whole).all()


@pytest.mark.parametrize("size", [(BLOCK, 9 * BLOCK // 3), (2 * BLOCK - 1, 300), (20, 20)])
def test_fewer_than_four_blocks_have_no_score(size: tuple[int, int]) -> None:
    height, width = size
    with pytest.raises(ValueError, match=f"{width}x{height} holds fewer than 4 blocks of 96x96"):
        features(noisy(height, width), window())


def test_blocks_without_contrast_do_not_count() -> None:
    image = noisy(2 * BLOCK, 4 * BLOCK)
    image[:, : 2 * BLOCK] = 0
    assert len(features(image, window())) == 4
    image[:BLOCK] = 0
    with pytest.raises(ValueError, match="fewer than 4 blocks of 96x96 have any contrast"):
        features(image, window())


GOLDEN = {
    "astronaut": (3.0994, 6.9675),
    "chelsea": (2.6255, 7.8388),
    "coffee": (4.1153, 7.5239),
}
"""Of a picture, and of its bicubic enlargement from a quarter."""


@pytest.mark.parametrize("name", GOLDEN)
def test_golden(name: str) -> None:
    score = published()
    truth, up = g2(name)
    assert (score(truth), score(up)) == pytest.approx(GOLDEN[name], abs=2e-3)


def test_golden_of_the_authors_release() -> None:
    score = published()
    if not DEV_VAL.exists():
        pytest.skip("needs ../shared/data/dev_val.tar")
    with tarfile.open(DEV_VAL) as tar:
        data = tar.extractfile("set14/baboon.webp").read()
    assert score(read_picture(data).pixels) == pytest.approx(5.7296, abs=5e-3)
