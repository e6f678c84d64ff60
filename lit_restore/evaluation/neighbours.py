"""Fidelity and variety told apart: precision, recall, density and coverage.

Each set of features stands for the union of balls around its members, which reach to their k-th
nearest neighbour (Kynkäänniemi et al., arXiv 1904.06991, eq. 1; Naeem et al., arXiv 2002.09797).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

_CHUNK_NUMBERS = 1 << 23
"""Distances held at a time: 64 MB."""


@dataclass(frozen=True, kw_only=True)
class Neighbours:
    """Four measures. None of them is 1 for two samples of one law, except density."""

    precision: float
    """Share of the fakes that lie in a ball of a real one."""
    recall: float
    """Share of the real ones that lie in a ball of a fake."""
    density: float
    """Real balls that a fake lies in on average, over k: can exceed 1."""
    coverage: float
    """Share of the real balls that hold a fake."""


def neighbours(real: Tensor, fake: Tensor, *, k: int = 3, k_density: int = 5) -> Neighbours:
    """All four, from three passes over the distances.

    Args:
        real: (N, d) features.
        fake: (M, d) features.
        k: neighbour, not counting the member itself, for precision and recall.
        k_density: the same for density and coverage.

    Raises:
        ValueError: a set has no k-th neighbour.
    """
    if min(len(real), len(fake)) <= max(k, k_density):
        raise ValueError(f"needs more than {max(k, k_density)} features on each side")
    real, fake = (x.detach().to("cpu", torch.float64) for x in (real, fake))
    centre = real.mean(0)  # squares of coordinates that are far from zero would cancel
    real, fake = real - centre, fake - centre
    near_real, wide_real = _radii(real, k, k_density)
    near_fake, _ = _radii(fake, k, k_density)
    precise = inside = 0
    recalled = torch.zeros(len(real), dtype=torch.bool)
    covered = recalled.clone()
    for rows, distances in _distances(fake, real):
        precise += int((distances <= near_real).any(1).sum())
        recalled |= (distances <= near_fake[rows, None]).any(0)
        within = distances <= wide_real
        inside += int(within.sum())
        covered |= within.any(0)
    return Neighbours(
        precision=precise / len(fake),
        recall=float(recalled.double().mean()),
        density=inside / (k_density * len(fake)),
        coverage=float(covered.double().mean()),
    )


def _radii(x: Tensor, *ks: int) -> list[Tensor]:
    """Squared distance of each feature to its k-th neighbour, for each k: tensors (N,)."""
    found = []
    for rows, distances in _distances(x, x):
        index = torch.arange(len(distances))
        distances[index, rows.start + index] = torch.inf  # no neighbour of its own
        found.append(distances.topk(max(ks), largest=False).values)
    nearest = torch.cat(found)
    return [nearest[:, k - 1] for k in ks]


def _distances(a: Tensor, b: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Squared distances (chunk, len(b)) between some rows of `a` and all of `b`, and which rows."""
    step = max(1, _CHUNK_NUMBERS // len(b))
    norms = b.square().sum(1)
    for start in range(0, len(a), step):
        rows = slice(start, min(start + step, len(a)))
        part = a[rows]
        squared = part.square().sum(1, keepdim=True) + norms - 2 * part @ b.T
        yield rows, squared.clamp_(min=0)
