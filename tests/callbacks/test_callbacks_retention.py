"""Which checkpoints go."""

from __future__ import annotations

from pathlib import Path

import pytest

from lit_restore.callbacks.retention import Retention
from lit_restore.errors import UserError
from lit_restore.weights.checkpoint import samples_of, step_folder


def steps(**scores: float | None) -> dict[Path, float | None]:
    return {step_folder(Path("c"), int(name[1:])): score for name, score in scores.items()}


def dropped(retention: Retention, scores: dict[Path, float | None]) -> list[int]:
    return [samples_of(path) for path in retention.surplus(scores)]


def test_newest_best_and_periodic_stay() -> None:
    scores = steps(s10=5.0, s20=9.0, s30=None, s40=1.0, s50=2.0, s60=None)
    assert dropped(Retention(last=2, best=1, every=0), scores) == [10, 30, 40]
    assert dropped(Retention(last=1, best=0, every=20), scores) == [10, 30, 50]
    assert dropped(Retention(last=9, best=0, every=0), scores) == []


def test_equal_scores_keep_the_older_and_nothing_scored_is_no_best() -> None:
    assert dropped(Retention(last=1, best=1, every=0), steps(s10=3.0, s20=3.0, s30=0.0)) == [20]
    assert dropped(Retention(last=1, best=2, every=0), steps(s10=None, s20=None)) == [10]


def test_keeping_none_is_refused() -> None:
    with pytest.raises(UserError, match="keep_last"):
        Retention(last=0, best=3, every=0)
