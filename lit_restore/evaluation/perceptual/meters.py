"""The perceptual columns of a protocol, opened: functions where the weights are, reasons else."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TypeAlias

from lit_restore.errors import UserError
from lit_restore.evaluation.metrics import Values
from lit_restore.evaluation.perceptual.deltas import open_topiq, topiq_delta
from lit_restore.evaluation.perceptual.dists import open_dists
from lit_restore.evaluation.perceptual.lpips import open_lpips
from lit_restore.evaluation.perceptual.names import PERCEPTUAL, PerceptualName
from lit_restore.evaluation.perceptual.niqe import open_niqe
from lit_restore.evaluation.perceptual.weights import MissingWeights, WeightFolders

Meter: TypeAlias = Callable[[Values, Values], float]
"""(output, target), both (H, W, 1 or 3) in [0, 255] → a number; `ValueError` if there is none."""


@dataclass(frozen=True, kw_only=True)
class Meters:
    """What can be measured, and why the rest cannot."""

    functions: Mapping[str, Meter] = field(default_factory=dict)
    missing: Mapping[str, str] = field(default_factory=dict)


def _of_the_output(score: Callable[[Values], float]) -> Meter:
    def measured(output: Values, target: Values) -> float:
        return score(output)

    return measured


OPENERS: dict[PerceptualName, Callable[[WeightFolders], Meter]] = {
    "lpips-alex": partial(open_lpips, "alex"),
    "lpips-vgg": partial(open_lpips, "vgg"),
    "dists": open_dists,
    "niqe": lambda folders: _of_the_output(open_niqe(folders)),
    "niqe_d": lambda folders: partial(topiq_delta, open_niqe(folders)),
    "topiq_d": lambda folders: partial(topiq_delta, open_topiq(folders)),
}
"""Column name → how it is opened."""


def open_meters(
    metrics: Iterable[str], folders: WeightFolders, *, require: Sequence[str] = ()
) -> Meters:
    """The perceptual ones among a protocol's metrics.

    Args:
        metrics: names; others than perceptual ones are left to `evaluation.metrics`.
        folders: where weights are searched.
        require: names that must be measured.

    Raises:
        UserError: a required metric is not among `metrics` or lacks its weights, or a file has
            other contents than its name promises.
    """
    named = set(metrics)
    wanted = [name for name in PERCEPTUAL if name in named]
    for name in require:
        if name not in wanted:
            known = ", ".join(wanted) or "none that needs weights"
            raise UserError(
                f"is no perceptual metric of this protocol; it has {known}",
                where=f"--require {name}",
            )
    functions: dict[str, Meter] = {}
    missing: dict[str, str] = {}
    for name in wanted:
        try:
            functions[name] = OPENERS[name](folders)
        except MissingWeights as error:
            if name in require:
                raise MissingWeights(error.message, where=f"--require {name}") from None
            missing[name] = error.message
    return Meters(functions=functions, missing=missing)
