"""The kernel distance of two sets of features (KID, where they are Inception's).

The squared maximum mean discrepancy under k(x, y) = (x·y/d + 1)³, without bias, so that equal laws
give zero on average and single values below zero (Bińkowski et al., arXiv 1801.01401, §4).
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lit_restore.seeding import numpy_generator

_SCALE = 1000.0


@dataclass(frozen=True, kw_only=True)
class KernelDistance:
    """Over random subsets of both sets. Both numbers times 1000, as they are printed."""

    mean: float
    sd: float
    """Between subsets; NaN where there was only one."""
    subsets: int
    size: int
    """Features of each side in a subset."""


def kernel_distance(
    real: Tensor, fake: Tensor, *, subsets: int = 100, size: int = 1000, seed: int = 0
) -> KernelDistance:
    """Mean and spread of the squared discrepancy over subsets drawn without replacement.

    Args:
        real: (N, d) features.
        fake: (M, d) features.
        subsets: how many.
        size: of each; sets that are smaller are taken whole, and then once if both are.
        seed: of the subsets.

    Raises:
        ValueError: fewer than two features on a side.
    """
    real, fake = (x.detach().to("cpu", torch.float64) for x in (real, fake))
    size = min(size, len(real), len(fake))
    if len(real) == len(fake) == size:
        subsets = 1
    values = [
        _SCALE * squared_discrepancy(_draw(real, size, seed, k), _draw(fake, size, seed, k, "fake"))
        for k in range(subsets)
    ]
    return KernelDistance(
        mean=math.fsum(values) / subsets,
        sd=statistics.stdev(values) if subsets > 1 else math.nan,
        subsets=subsets,
        size=size,
    )


def squared_discrepancy(x: Tensor, y: Tensor) -> float:
    """The unbiased estimate of E k(x, x') + E k(y, y') - 2 E k(x, y) (arXiv 1801.01401, eq. 4).

    Args:
        x: (N, d) float64.
        y: (M, d) float64.

    Raises:
        ValueError: fewer than two features on a side.
    """
    if min(len(x), len(y)) < 2:
        raise ValueError("the kernel distance needs at least 2 features on each side")
    return float(_within(x) + _within(y) - 2 * _kernel(x, y).mean())


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    return (x @ y.T / x.shape[1] + 1) ** 3


def _within(x: Tensor) -> Tensor:
    """Mean over pairs of different features: a feature paired with itself would be the bias."""
    kernel, n = _kernel(x, x), len(x)
    return (kernel.sum() - kernel.diagonal().sum()) / (n * (n - 1))


def _draw(features: Tensor, size: int, seed: int, subset: int, side: str = "real") -> Tensor:
    if size == len(features):
        return features
    generator = numpy_generator(seed, subset, f"kernel_distance/{side}")
    chosen = generator.choice(len(features), size, replace=False)
    return features[torch.from_numpy(np.sort(chosen))]
