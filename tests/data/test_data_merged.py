"""Generators side by side: all that they yield, their errors, and no process left over."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from multiprocessing import active_children

import pytest

from lit_restore.data.merged import merged
from lit_restore.errors import RankLost, UserError


def count_to(number: int) -> Iterator[tuple[int, int]]:
    for k in range(abs(number)):
        yield number, k
    if number < 0:
        raise UserError(f"{number} is negative", where="number")


def pid_for_ever(number: int) -> Iterator[int]:
    while True:
        yield os.getpid()
        time.sleep(0.01)


def die(number: int) -> Iterator[int]:
    yield number
    os.kill(os.getpid(), signal.SIGKILL)


def stumble(number: int) -> Iterator[int]:
    yield number
    raise KeyError(number)


@pytest.mark.parametrize("tasks", [[], [3], [3, 0, 2]])
def test_all_is_yielded_and_each_in_its_order(tasks: list[int]) -> None:
    found = list(merged(count_to, tasks, start="fork"))
    assert sorted(found) == sorted((n, k) for n in tasks for k in range(n))
    for number in tasks:
        assert [k for n, k in found if n == number] == list(range(number))
    assert not active_children()


@pytest.mark.slow  # a new interpreter imports for seconds
def test_new_interpreters_yield_the_same() -> None:
    assert sorted(merged(count_to, [2, 1], start="spawn")) == [(1, 0), (2, 0), (2, 1)]


def test_one_runs_in_this_process_and_several_in_their_own() -> None:
    assert next(merged(pid_for_ever, [0], start="fork")) == os.getpid()
    both = merged(pid_for_ever, [0, 1], start="fork")
    seen = {next(both) for _ in range(20)}
    assert os.getpid() not in seen
    both.close()  # type: ignore[attr-defined]
    assert not active_children()


@pytest.mark.parametrize("tasks", [[-1], [-1, 2]])
def test_an_error_comes_as_it_is(tasks: list[int]) -> None:
    with pytest.raises(UserError) as error:
        list(merged(count_to, tasks, start="fork"))
    assert (error.value.message, error.value.where) == ("-1 is negative", "number")
    assert str(error.value) == "number: -1 is negative"
    assert not active_children()


def test_a_fault_of_ours_brings_its_traceback() -> None:
    with pytest.raises(KeyError) as error:
        list(merged(stumble, [1, 2], start="fork"))
    assert "in stumble" in error.value.__notes__[0]


def test_a_killed_process_is_told_and_the_others_end() -> None:
    with pytest.raises(RankLost, match="a process died"):
        list(merged(die, [1, 2], start="fork"))
    assert not active_children()
