"""Wavelet packets along one axis as matrices, from PyWavelets' filters.

Borders are periodic (PyWavelets' mode "periodization"), so matrices are square and invertible.
"""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from lit_restore.errors import UserError

Matrix: TypeAlias = npt.NDArray[np.floating[Any]]
"""A matrix of float64."""

HAAR = ("haar", "db1")
"""The names of the one wavelet whose bands are local."""


def check(wavelet: str) -> None:
    """Refuse what is no discrete wavelet.

    Raises:
        UserError: PyWavelets has no discrete wavelet of this name.
    """
    if wavelet in HAAR:
        return
    # Imported where it is needed: Haar, the default, does without it.
    import pywt

    if wavelet not in pywt.wavelist(kind="discrete"):
        raise UserError(
            f"{wavelet!r} is no discrete wavelet of PyWavelets; take haar, db2, sym4 or another of "
            "pywt.wavelist(kind='discrete')",
            where="wavelet",
        )


def packet_matrix(wavelet: str, size: int, levels: int) -> Matrix:
    """A packet along one axis, scaled by 2^(-levels/2).

    Args:
        wavelet: a name that `check` lets pass.
        size: of the axis, a multiple of 2^levels.
        levels: how often it is split.

    Returns:
        (size, size): coefficients from samples. Row i·(size/2^levels) + y is band i at place y; the
        binary digits of i are the filters of each level, low 0, the first level's the most
        significant. Band 0 of a constant is that constant.
    """
    if levels == 0:
        return np.eye(size)
    low, high = _haar(size) if wavelet in HAAR else _split(wavelet, size)
    rest = packet_matrix(wavelet, size // 2, levels - 1)
    return np.concatenate([rest @ low, rest @ high])


def natural_bands(levels: int) -> npt.NDArray[np.int64]:
    """Two-dimensional bands in natural order.

    Returns:
        (4^levels,): for band b, whose digits in base 4 are (row filter) + 2 · (column filter) of
        each level, the number i·2^levels + j of its pair of one-dimensional bands.
    """
    pairs = []
    for band in range(4**levels):
        digits = [band // 4**level % 4 for level in range(levels)]
        row = sum(digit % 2 << level for level, digit in enumerate(digits))
        column = sum(digit // 2 << level for level, digit in enumerate(digits))
        pairs.append(row * 2**levels + column)
    return np.array(pairs, dtype=np.int64)


def _haar(size: int) -> tuple[Matrix, Matrix]:
    pairs = np.eye(size // 2)
    return np.kron(pairs, [[0.5, 0.5]]), np.kron(pairs, [[0.5, -0.5]])


def _split(wavelet: str, size: int) -> tuple[Matrix, Matrix]:
    import pywt

    low, high = pywt.dwt(np.eye(size), wavelet, mode="periodization", axis=0)
    return low / math.sqrt(2), high / math.sqrt(2)
