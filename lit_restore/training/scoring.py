"""How far made pictures are from real ones, while a generative training is validated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from lit_restore.data.batch import Batch
from lit_restore.errors import require_at_least
from lit_restore.evaluation.distribution import DistributionScore, SetMetric
from lit_restore.evaluation.features import open_features


@dataclass(frozen=True, kw_only=True)
class ScoreOptions:
    """Distances between the validation data and pictures made with the averaged weights."""

    features: str = "pixels"
    """pixels (8x8 means; needs no weights), squeezenet:FILE[:MEMBER] or inception:FILE."""
    count: int = 0
    """Pictures made at each validation, at most one for each validation sample, whose label it
    takes; 0 for none."""
    metrics: tuple[SetMetric, ...] = ("fd", "kid", "precision", "recall")
    """fd, fd_infinity, kid, precision, recall, density, coverage."""

    def __post_init__(self) -> None:
        require_at_least(0, model__score__count=self.count)


class Maker(Protocol):
    """What makes the pictures, and shows data as pictures."""

    def made(self, net: nn.Module, names: Sequence[int | str], labels: Tensor | None) -> Tensor:
        """(B, 3, H, W) in [0, 1]."""

    def shown(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1]."""


class SampleScore:
    """One validation's real and made pictures.

    Args:
        options: what is measured, and on how many pictures.

    Raises:
        UserError: the feature network cannot be had, or a metric is unknown.
    """

    def __init__(self, options: ScoreOptions) -> None:
        self.count = options.count
        self._world, self._seen = 1, 0
        self._distances: DistributionScore | None = None
        if options.count:
            network = open_features(options.features, where="model.score.features")
            self._distances = DistributionScore(network, options.metrics)

    def start(self, world: int) -> None:
        """Forget the last validation; `world` ranks see a share of every batch each."""
        self._world, self._seen = world, 0
        if self._distances is not None:
            self._distances.reset()

    def add(
        self, maker: Maker, net: nn.Module, batch: Batch, x1: Tensor, labels: Tensor | None
    ) -> None:
        """Take the real pictures of a batch, and make one for each while there are too few.

        Args:
            maker: makes the pictures and shows the data.
            net: the weights to make them with.
            batch: its samples of weight 0 are left out.
            x1: its data.
            labels: (B,) what the made pictures are to show; none without classes.
        """
        if self._distances is None:
            return
        start, self._seen = self._seen, self._seen + self._world * len(x1)
        positions, counts = batch["position"], batch["weight"].cpu() > 0
        real = counts.nonzero()[:, 0]
        if len(real):
            self._distances.update_real(maker.shown(x1[real.to(x1.device)]), positions[real])
        if start >= self.count:
            return
        # All of the batch, and so on every rank: a sharded network is called by all or by none.
        made = maker.made(net, positions.tolist(), labels)
        kept = (counts & (positions < self.count)).nonzero()[:, 0]
        if len(kept):
            self._distances.update_fake(made[kept.to(made.device)], positions[kept])

    def compute(self) -> dict[str, float]:
        """The distances over all ranks, the same on each; empty where none are asked for."""
        if self._distances is None:
            return {}
        if self._world > 1:
            states: list[Any] = [None] * self._world
            torch.distributed.all_gather_object(states, self._distances.state())
            self._distances.merge(states)
        return self._distances.compute()
