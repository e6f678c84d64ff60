"""NIQE (Mittal, Soundararajan and Bovik 2013): how unnatural a picture is, without a reference.

36 numbers describe each block's local contrast at two scales; the distance is between their
Gaussian law over the picture's blocks and the law over blocks of good photographs. In float64.
Luma is rounded to whole numbers and the half scale is MATLAB's `imresize`, as in the authors'
release: without the first NIQE is lower by up to 0.1, with another resize up to 1.9 off.

In flat parts of a picture the local contrast is rounding noise, and its signs are counted as any
others: separable smoothing, or a window that differs by 1e-17, moves the score of a picture with
flat parts by up to 0.005. So the window is the published one, applied in two dimensions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import correlate
from scipy.special import gamma

from lit_restore.errors import UserError
from lit_restore.evaluation.metrics import Floats, Values, in_colour
from lit_restore.evaluation.perceptual.weights import Requirement, WeightFolders
from lit_restore.io.torch_files import load_foreign_weights
from lit_restore.ops.resize import imresize_pixels

BLOCK = 96
"""Side of a block, in pixels of the full scale."""
_FEWEST = 4
"""Blocks; the covariance of fewer says nothing."""
_FEATURES = 36
_SHIFTS = ((0, 1), (1, 0), (1, 1), (1, -1))
"""Neighbours whose products are described: right, below and both diagonals."""
_WINDOW = (7, 7)
_SHAPES = np.arange(200, 10_001) / 1000
"""Candidate shapes of the generalised Gaussian."""
_RATIOS = gamma(2 / _SHAPES) ** 2 / (gamma(1 / _SHAPES) * gamma(3 / _SHAPES))

PARAMETERS = Requirement(
    file="niqe_pris_params.npz",
    sha256="2a7c182a68c9e7f1",
    bytes=11_850,
    licence="Apache-2.0",
    how="basicsr/metrics/niqe_pris_params.npz of XPixelGroup/BasicSR",
)


@dataclass(frozen=True)
class NIQE:
    """The score against the law of good photographs.

    Args:
        mean: (36,).
        covariance: (36, 36).
        window: (7, 7), a Gaussian of σ = 7/6 and sum 1; of local means.
    """

    mean: Floats
    covariance: Floats
    window: Floats

    def __call__(self, image: Values) -> float:
        """Of one picture (H, W, 1 or 3) in [0, 255]; its luma where it has colours (eq. 10).

        Raises:
            ValueError: fewer than 4 blocks of 96x96 that have any contrast.
        """
        found = features(image, self.window)
        difference = self.mean - found.mean(0)
        pooled = (self.covariance + np.cov(found, rowvar=False)) / 2
        return float(np.sqrt(difference @ np.linalg.pinv(pooled) @ difference))


def open_niqe(folders: WeightFolders) -> NIQE:
    """With the published parameters.

    Raises:
        MissingWeights: their file is nowhere.
        UserError: it is damaged or another's.
    """
    _, path = folders.find(PARAMETERS)
    stored = load_foreign_weights(path)
    names = ("mu_pris_param", "cov_pris_param", "gaussian_window")
    mean, covariance, window = (stored[name].double().numpy() for name in names)
    if (mean.size, covariance.shape, window.shape) != (_FEATURES, (_FEATURES,) * 2, _WINDOW):
        raise UserError("holds no parameters of NIQE", where=path)
    return NIQE(mean.ravel(), covariance, window)


def features(image: Values, window: Floats) -> Floats:
    """Descriptions of a picture's whole blocks of 96x96, (blocks, 36).

    Args:
        image: (H, W, 1 or 3) in [0, 255].
        window: (7, 7), of local means.

    Blocks without contrast, which have no description, are left out.

    Raises:
        ValueError: fewer than 4 are left.
    """
    y = in_colour(image, "y_uint8")
    y = np.floor((y[..., 0] if y.ndim == 3 else y).astype(np.float64) + 0.5)
    rows, columns = (side // BLOCK for side in y.shape)
    if rows * columns < _FEWEST:
        height, width = image.shape[:2]
        raise ValueError(f"{width}x{height} holds fewer than {_FEWEST} blocks of {BLOCK}x{BLOCK}")
    y = y[: rows * BLOCK, : columns * BLOCK]
    half = np.asarray(imresize_pixels(y, 0.5), np.float64)
    described = [_described(y, BLOCK, window), _described(half, BLOCK // 2, window)]
    found: Floats = np.concatenate(described, axis=1)
    found = found[np.isfinite(found).all(1)]
    if len(found) < _FEWEST:
        raise ValueError(f"fewer than {_FEWEST} blocks of {BLOCK}x{BLOCK} have any contrast")
    return found


def _described(y: Floats, side: int, window: Floats) -> Floats:
    contrast = _normalised(y, window)
    with np.errstate(divide="ignore", invalid="ignore"):  # flat blocks
        return np.array([_block(block) for block in _blocks(contrast, side)])


def _normalised(y: Floats, window: Floats) -> Floats:
    """Local mean taken off, divided by the local deviation + 1 (eq. 1 to 3)."""
    mean, squares = (correlate(values, window, mode="nearest") for values in (y, y * y))
    contrast: Floats = (y - mean) / (np.sqrt(np.abs(squares - mean**2)) + 1)
    return contrast


def _blocks(y: Floats, side: int) -> Iterator[Floats]:
    """Whole blocks, row by row. Their order is the same at both scales."""
    for top in range(0, y.shape[0], side):
        for left in range(0, y.shape[1], side):
            yield y[top : top + side, left : left + side]


def _block(block: Floats) -> list[float]:
    """18 numbers (§II-B): two of the contrast, four of its products with each neighbour."""
    shape, left, right = asymmetric_gaussian(block)
    numbers = [shape, (left + right) / 2]
    for shift in _SHIFTS:
        shape, left, right = asymmetric_gaussian(block * np.roll(block, shift, (0, 1)))
        mean = (right - left) * gamma(2 / shape) / gamma(1 / shape)
        numbers += [shape, mean, left, right]
    return [float(number) for number in numbers]


def asymmetric_gaussian(values: Floats) -> tuple[float, float, float]:
    """Fit an asymmetric generalised Gaussian by its moments (Lasmar et al. 2009).

    Args:
        values: a sample, of any shape.

    Returns:
        Shape, and the scales β of the left and right side (eq. 7): NaN for a sample without values
        on both sides of 0.
    """
    left, right = (
        np.sqrt(np.sum(side**2) / np.count_nonzero(side))
        for side in (np.minimum(values, 0), np.maximum(values, 0))
    )
    skew = left / right
    ratio = np.mean(np.abs(values)) ** 2 / np.mean(values**2)
    ratio *= (skew**3 + 1) * (skew + 1) / (skew**2 + 1) ** 2
    if not np.isfinite(ratio):
        return float("nan"), float("nan"), float("nan")
    shape = _SHAPES[np.argmin((_RATIOS - ratio) ** 2)]
    scale = np.sqrt(gamma(1 / shape) / gamma(3 / shape))
    return float(shape), float(left * scale), float(right * scale)
