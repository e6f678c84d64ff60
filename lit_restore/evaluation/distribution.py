"""How far generated images are from real ones, as sets: what a generator is validated by."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

from lit_restore.errors import UserError
from lit_restore.evaluation.features import FeatureNetwork
from lit_restore.evaluation.frechet import Moments, fd_infinity, frechet_distance
from lit_restore.evaluation.kernel_distance import kernel_distance
from lit_restore.evaluation.neighbours import neighbours

SetMetric: TypeAlias = Literal[
    "fd", "fd_infinity", "kid", "precision", "recall", "density", "coverage"
]
SET_METRICS: tuple[SetMetric, ...] = get_args(SetMetric)
"""All that can be asked for; only fd, fd_infinity and kid are better when lower."""
_LEAST: dict[SetMetric, int] = {"fd": 2, "fd_infinity": 8, "kid": 2}
_LEAST_NEIGHBOURS = 6
_ROOM = 1024


class FeatureSet:
    """Features (n, d) float32 and the place (n,) of each image in its set.

    They lie in one block that grows: many small tensors, kept among the pictures' that come and go,
    would hold on to the memory of the pictures.
    """

    def __init__(self) -> None:
        self._features, self._positions = torch.empty(0, 0), torch.empty(0, dtype=torch.int64)
        self._count = 0

    def add(self, features: Tensor, positions: Tensor) -> None:
        """More of them; positions are -1 where the caller gave none."""
        end = self._count + len(features)
        if end > len(self._positions):
            room = max(end, 2 * len(self._positions), _ROOM)
            self._features = _grown(self._features[: self._count], room, features.shape[1:])
            self._positions = _grown(self._positions[: self._count], room, ())
        self._features[self._count : end] = features
        self._positions[self._count : end] = positions
        self._count = end

    def joined(self, dimension: int) -> tuple[Tensor, Tensor]:
        """All: (N, dimension) and (N,)."""
        features = self._features[: self._count].reshape(self._count, dimension)
        return features, self._positions[: self._count]

    def ordered(self, dimension: int) -> Tensor:
        """Features by position, each position once; in the order they came where there are none."""
        features, positions = self.joined(dimension)
        if bool((positions < 0).any()):
            return features
        kept = {position: row for row, position in enumerate(positions.tolist())}
        return features[[kept[position] for position in sorted(kept)]]


def _grown(x: Tensor, room: int, shape: Sequence[int]) -> Tensor:
    """`x` (n, …) at the beginning of a block of `room` rows."""
    block = torch.empty(room, *shape, dtype=x.dtype)
    if len(x):
        block[: len(x)] = x
    return block


class DistributionScore:
    """Collects features of real and generated images, over processes too, and compares them.

    Holds all features (50,000 images of 512 features: 100 MB a side), for the nearest neighbours
    and the subsets need them. With positions given, the result is a function of the two sets alone:
    not of the number of processes, nor of samples that a sampler repeats to fill the last batch.

    Args:
        features: the network.
        metrics: names of `SET_METRICS`.
        kid_subsets: of 1000 features each.
        seed: of the subsets.

    Raises:
        UserError: an unknown metric.
    """

    def __init__(
        self,
        features: FeatureNetwork,
        metrics: Sequence[SetMetric] = ("fd", "kid", "precision", "recall"),
        *,
        kid_subsets: int = 100,
        seed: int = 0,
    ) -> None:
        for metric in metrics:
            if metric not in SET_METRICS:
                raise UserError(
                    f"no such metric of sets; there are {', '.join(SET_METRICS)}", where=metric
                )
        self.network, self.metrics = features, tuple(metrics)
        self.kid_subsets, self.seed = kid_subsets, seed
        self.blanks: dict[str, str] = {}
        """Metric → why the last `compute` has no number for it."""
        self._real, self._fake = FeatureSet(), FeatureSet()

    def update_real(self, images: Tensor, positions: Tensor | None = None) -> None:
        """Add real images.

        Args:
            images: (B, 3, H, W) in [0, 1]; quantised to 8 bits here.
            positions: (B,) their places in the set; give them always or never.
        """
        self._add(self._real, images, positions)

    def update_fake(self, images: Tensor, positions: Tensor | None = None) -> None:
        """Add generated images; arguments as of `update_real`."""
        self._add(self._fake, images, positions)

    def reset(self, *, keep_real: bool = False) -> None:
        """Forget all images, or the generated ones only: real ones stay the same over a run."""
        self._real = self._real if keep_real else FeatureSet()
        self._fake = FeatureSet()

    def state(self) -> dict[str, Tensor]:
        """Features of the process, plain tensors on the CPU, to be gathered."""
        sides = {"real": self._real, "fake": self._fake}
        joined = {name: side.joined(self.network.dimension) for name, side in sides.items()}
        return {
            f"{name}_{part}": tensor.clone()  # of the block, which would be sent whole
            for name, pair in joined.items()
            for part, tensor in zip(("features", "positions"), pair, strict=True)
        }

    def merge(self, states: Iterable[Mapping[str, Tensor]]) -> None:
        """Take the states of all processes, its own among them, in the order of ranks."""
        self.reset()
        for state in states:
            self._real.add(state["real_features"].cpu(), state["real_positions"].cpu())
            self._fake.add(state["fake_features"].cpu(), state["fake_positions"].cpu())

    def compute(self) -> dict[str, float]:
        """The metrics, under names such as ``fd_squeezenet``, and ``n_real`` and ``n_fake``.

        ``kid_…`` is times 1000 and has ``kid_sd_…`` beside it where there are several subsets. A
        metric that needs more images than there are is left out; `blanks` says so.
        """
        real, fake = (x.ordered(self.network.dimension) for x in (self._real, self._fake))
        values: dict[str, float] = {}
        self.blanks = {}
        for metric in self.metrics:
            least = _LEAST.get(metric, _LEAST_NEIGHBOURS)
            if min(len(real), len(fake)) < least:
                self.blanks[metric] = f"needs {least} images of each kind"
        wanted = [metric for metric in self.metrics if metric not in self.blanks]
        if "fd" in wanted:
            values["fd"] = frechet_distance(Moments.of(real), Moments.of(fake))
        if "fd_infinity" in wanted:
            values["fd_infinity"] = fd_infinity(real, fake, seed=self.seed)
        if "kid" in wanted:
            kid = kernel_distance(real, fake, subsets=self.kid_subsets, seed=self.seed)
            values |= {"kid": kid.mean} | ({} if math.isnan(kid.sd) else {"kid_sd": kid.sd})
        if near := [metric for metric in wanted if metric not in _LEAST]:
            found = neighbours(real, fake)
            values |= {metric: getattr(found, metric) for metric in near}
        named = {f"{name}_{self.network.kind}": value for name, value in values.items()}
        return {**named, "n_real": float(len(real)), "n_fake": float(len(fake))}

    def _add(self, side: FeatureSet, images: Tensor, positions: Tensor | None) -> None:
        if positions is None:
            positions = torch.full((len(images),), -1)
        assert len(positions) == len(images), (len(positions), len(images))
        side.add(self.network(images), positions.cpu().long())
