"""The ordered map over processes."""

from __future__ import annotations

import os

import pytest

from lit_restore.data.workers import ordered_map
from lit_restore.errors import RankLost


def _square(number: int) -> int:
    return number * number


def _die(number: int) -> int:
    os._exit(9)


@pytest.mark.parametrize("workers", [1, 3])
def test_results_come_in_the_order_of_the_tasks(workers: int) -> None:
    assert list(ordered_map(_square, range(40), workers=workers)) == [k * k for k in range(40)]


def test_tasks_are_read_only_a_little_ahead() -> None:
    drawn: list[int] = []
    results = ordered_map(_square, (drawn.append(k) or k for k in range(10**9)), workers=2)
    assert [next(results) for _ in range(5)] == [0, 1, 4, 9, 16]
    assert len(drawn) < 20
    results.close()  # type: ignore[attr-defined]


def test_a_killed_worker_is_one_line() -> None:
    with pytest.raises(RankLost, match="worker process died"):
        list(ordered_map(_die, range(4), workers=2))
