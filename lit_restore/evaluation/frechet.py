"""The Fréchet distance between two sets of features, each taken for a normal distribution.

FD = |m1 - m2|² + tr S1 + tr S2 - 2 tr (S1^½ S2 S1^½)^½ (Dowson and Landau 1982; Heusel et al.,
arXiv 1706.08500, eq. 6). It is FID only on the features of one certain Inception network, see
`lit_restore.evaluation.features`. Everything is float64: covariances in float32 are off by 0.2 %.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from os import PathLike

import numpy as np
import torch
from torch import Tensor

from lit_restore.errors import UserError
from lit_restore.io import fs, tensors
from lit_restore.seeding import numpy_generator

_ENTRY = "lit_restore_moments"
_PARTS = {"count", "mean", "scatter"}


@dataclass
class Moments:
    """Number, mean and scatter of features, grown batch by batch and merged over processes.

    The scatter is the sum of the products of deviations from the mean, updated by Chan, Golub and
    LeVeque's rule (1983): nothing cancels where means are large beside deviations.
    """

    count: int
    mean: Tensor
    """(d,) float64."""
    scatter: Tensor
    """(d, d) float64, covariance times count - 1."""

    @classmethod
    def empty(cls, dimension: int) -> Moments:
        """Of no features yet."""
        zeros = torch.zeros(dimension, dimension, dtype=torch.float64)
        return cls(0, zeros[0].clone(), zeros)

    @classmethod
    def of(cls, features: Tensor) -> Moments:
        """Of features (N, d) of any float type, N >= 1."""
        assert features.ndim == 2, features.shape
        assert len(features), "no features"
        values = features.detach().to("cpu", torch.float64)
        mean = values.mean(0)
        away = values - mean
        return cls(len(values), mean, away.T @ away)

    @property
    def covariance(self) -> Tensor:
        """(d, d) float64, the unbiased estimate (divided by count - 1).

        Raises:
            ValueError: of fewer than two features.
        """
        if self.count < 2:
            raise ValueError(f"a covariance needs at least 2 features, got {self.count}")
        return self.scatter / (self.count - 1)

    def update(self, features: Tensor) -> None:
        """Add features (N, d)."""
        if len(features):
            self.merge(Moments.of(features))

    def merge(self, other: Moments) -> None:
        """Add another set's moments. Ranks are merged in their order: floats do not commute."""
        count = self.count + other.count
        if other.count == 0:
            return
        gap = other.mean - self.mean
        self.mean = self.mean + gap * (other.count / count)
        shift = torch.outer(gap, gap) * (self.count * other.count / count)
        self.scatter = self.scatter + other.scatter + shift
        self.count = count

    def state(self) -> dict[str, Tensor]:
        """Plain tensors, to be gathered from other processes."""
        return {"count": torch.tensor(self.count), "mean": self.mean, "scatter": self.scatter}

    @classmethod
    def from_states(cls, states: Iterable[Mapping[str, Tensor]]) -> Moments:
        """The moments of all processes' features, from their `state` in the order of ranks."""
        parts = [
            cls(int(state["count"]), state["mean"].cpu(), state["scatter"].cpu())
            for state in states
        ]
        total = cls.empty(len(parts[0].mean))
        for part in parts:
            total.merge(part)
        return total


def save_moments(path: str | PathLike[str], moments: Moments, features: str) -> None:
    """Write moments as a safetensors file, wholly or not at all.

    Args:
        path: the file to write or replace.
        moments: what to keep.
        features: which network they are of (`FeatureNetwork.identity`).

    Raises:
        OSError: the disk refused.
    """
    content = io.BytesIO()
    tensors.save_tensors(content, moments.state(), {_ENTRY: json.dumps({"features": features})})
    fs.write_atomic(path, content.getvalue())


def load_moments(path: str | PathLike[str], features: str) -> Moments:
    """Read what `save_moments` wrote.

    Args:
        path: the file.
        features: the network whose moments are wanted.

    Raises:
        UserError: missing, damaged, no moments, or of another network's features.
    """
    about = tensors.read_metadata(path)
    try:
        of = json.loads(about[_ENTRY])["features"]
    except (KeyError, ValueError, TypeError):
        raise UserError("holds no moments of features; make them again", where=path) from None
    if of != features:
        raise UserError(f"holds moments of {of}, not of {features}; make them again", where=path)
    stored = tensors.load_tensors(path)
    if set(stored) != _PARTS or not _fit(stored):
        raise UserError("its moments are damaged; make them again", where=path)
    return Moments.from_states([stored])


def frechet_distance(a: Moments, b: Moments) -> float:
    """FD between two normal distributions; never negative, NaN where a moment is not finite.

    Its estimate from N features a side is too high by about d(d+1)/(2N) + 2d/N for equal isotropic
    laws of unit variance, so that numbers of different N do not compare.

    Args:
        a: moments of at least two features.
        b: moments of as many dimensions; the order of the two does not matter.

    Raises:
        ValueError: fewer than two features.
    """
    covariances = a.covariance, b.covariance
    # LAPACK may fail on what is not finite, or not notice it.
    if not all(bool(part.isfinite().all()) for part in (a.mean, b.mean, *covariances)):
        return math.nan
    root = _square_root(covariances[0])
    product = root @ covariances[1] @ root
    # Symmetric up to rounding; the smallest eigenvalues come out a little below zero.
    cross = torch.linalg.eigvalsh((product + product.T) / 2).clamp(min=0).sqrt().sum()
    apart = (a.mean - b.mean).square().sum()
    distance = apart + covariances[0].trace() + covariances[1].trace() - 2 * cross
    return max(0.0, float(distance))


def fd_infinity(real: Tensor, fake: Tensor, *, sizes: int = 15, seed: int = 0) -> float:
    """FD extrapolated to infinitely many features of both sides (arXiv 1911.07023, §4).

    The bias goes as 1/N: FD is taken of random parts of both sets, the same fraction of each, and
    a line in one over the fraction is followed to zero. May be slightly negative.

    Args:
        real: (N, d) features.
        fake: (M, d) features.
        sizes: fractions between a quarter and the whole.
        seed: of the parts, which are drawn without replacement.

    Raises:
        ValueError: fewer than 8 features on a side.
    """
    if min(len(real), len(fake)) < 8:
        raise ValueError("FD at infinity needs at least 8 features on each side")
    fractions = np.linspace(0.25, 1.0, sizes)
    distances = [
        frechet_distance(
            _part(real, fraction, seed, f"real/{index}"),
            _part(fake, fraction, seed, f"fake/{index}"),
        )
        for index, fraction in enumerate(fractions)
    ]
    return float(np.polynomial.polynomial.polyfit(1 / fractions, distances, 1)[0])


def _square_root(covariance: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(covariance)
    root: Tensor = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    return root


def _part(features: Tensor, fraction: float, seed: int, side: str) -> Moments:
    count = round(fraction * len(features))
    chosen = numpy_generator(seed, 0, f"fd_infinity/{side}").permutation(len(features))[:count]
    return Moments.of(features[torch.from_numpy(np.sort(chosen))])


def _fit(stored: Mapping[str, Tensor]) -> bool:
    count, mean, scatter = stored["count"], stored["mean"], stored["scatter"]
    return (
        count.numel() == 1
        and count.dtype == torch.int64
        and int(count) >= 0
        and mean.ndim == 1
        and tuple(scatter.shape) == (len(mean), len(mean))
        and all(t.dtype == torch.float64 and bool(t.isfinite().all()) for t in (mean, scatter))
    )
