"""The order of a run: a pure function of (seed, position)."""

from __future__ import annotations

import pytest

from lit_restore.data.order import Order

COUNTS = [7, 1, 12, 5, 9, 3]


@pytest.mark.parametrize("window", [0, 1, 2, 4, 99])
def test_every_sample_comes_exactly_once_an_epoch(window: int) -> None:
    order = Order(COUNTS, seed=3, window=window)
    for epoch in range(3):
        first = epoch * order.size
        indices = [order.index(first + k) for k in range(order.size)]
        assert sorted(indices) == list(range(order.size))


def test_epochs_and_seeds_differ() -> None:
    order, other = Order(COUNTS, seed=3, window=2), Order(COUNTS, seed=4, window=2)
    n = order.size
    first = [order.index(k) for k in range(n)]
    assert first != [order.index(n + k) for k in range(n)]
    assert first != [other.index(k) for k in range(n)]


def test_a_position_does_not_depend_on_what_was_asked_before() -> None:
    walked = Order(COUNTS, seed=0, window=2)
    sequence = [walked.index(k) for k in range(200)]
    fresh = [Order(COUNTS, seed=0, window=2).index(k) for k in range(200)]
    backwards = Order(COUNTS, seed=0, window=2)
    assert sequence == fresh
    assert sequence == [backwards.index(k) for k in reversed(range(200))][::-1]


def test_a_window_bounds_the_working_set() -> None:
    counts = [10] * 8
    order = Order(counts, seed=1, window=2)
    for start in range(0, 80, 20):
        shards = {order.index(start + k) // 10 for k in range(20)}
        assert len(shards) == 2


def test_empty_shards_are_passed_over() -> None:
    order = Order([0, 4, 0, 0, 3, 0], seed=5, window=2)
    assert sorted(order.index(k) for k in range(7)) == list(range(7))
