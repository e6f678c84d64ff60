"""The division of a run into steps, micro-batches and ranks."""

from __future__ import annotations

import pytest

from lit_restore.data.plan import BatchPlan, PositionBatches, plan_batches
from lit_restore.errors import UserError


def plan(world: int, micro: int | None, *, total: int = 96, batch: int = 12) -> BatchPlan:
    return plan_batches(total_samples=total, global_batch=batch, micro_batch=micro, world=world)


@pytest.mark.parametrize(("world", "micro"), [(1, None), (1, 4), (2, 3), (3, 2), (4, 1), (2, 99)])
def test_a_step_has_the_same_samples_on_any_number_of_ranks(world: int, micro: int | None) -> None:
    p = plan(world, micro)
    per_rank = [list(PositionBatches(p, rank=r)) for r in range(world)]
    assert {len(batches) for batches in per_rank} == {p.batches}
    for step in range(p.steps):
        micro_batches = slice(step * p.accumulation, (step + 1) * p.accumulation)
        seen = [q for batches in per_rank for batch in batches[micro_batches] for q in batch]
        assert sorted(seen) == list(range(step * 12, (step + 1) * 12))


def test_a_resumed_sampler_goes_on_where_the_other_stopped_but_says_the_whole_length() -> None:
    p = plan(2, 3)
    whole = list(PositionBatches(p, rank=1))
    rest = PositionBatches(p, rank=1, start=36)
    assert list(rest) == whole[6:]
    assert len(rest) == len(whole)


@pytest.mark.parametrize(
    ("world", "micro", "total", "batch", "words"),
    [
        (4, None, 120, 30, ["data.global_batch", "30", "28 or 32"]),
        (4, 3, 96, 16, ["data.micro_batch", "4 ranks x 3", "2 or 4"]),
        (1, None, 100, 12, ["total_samples", "96 or 108"]),
        (1, 0, 96, 12, ["data.micro_batch", "0"]),
        (1, None, 0, 12, ["total_samples", "0"]),
        (1, None, 5, 12, ["total_samples", "use 12"]),
    ],
)
def test_what_does_not_divide_names_the_key_and_valid_values(
    world: int, micro: int | None, total: int, batch: int, words: list[str]
) -> None:
    with pytest.raises(UserError) as error:
        plan(world, micro, total=total, batch=batch)
    assert all(word in str(error.value) for word in words), str(error.value)


def test_schedules_in_images_are_rounded_up_to_whole_steps() -> None:
    assert [plan(1, None).steps_for(images) for images in (1, 12, 13, 48)] == [1, 1, 2, 4]
