"""How a run's samples are cut into steps, micro-batches and ranks: arithmetic only."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch.utils.data import Sampler

from lit_restore.errors import UserError


@dataclass(frozen=True, kw_only=True)
class BatchPlan:
    """The division of one run; every step is full and equal on all ranks."""

    total_samples: int
    """Length of the run in samples."""
    global_batch: int
    """Samples per optimiser step, over all ranks and micro-batches."""
    world: int
    """Number of ranks."""
    micro: int
    """Samples per rank and forward pass."""

    @property
    def accumulation(self) -> int:
        """Micro-batches per optimiser step."""
        return self.global_batch // (self.world * self.micro)

    @property
    def batches(self) -> int:
        """Micro-batches per rank in the whole run."""
        return self.total_samples // (self.world * self.micro)

    @property
    def steps(self) -> int:
        """Optimiser steps in the whole run."""
        return self.total_samples // self.global_batch

    def steps_for(self, images: int) -> int:
        """`images` as a number of whole steps, at least one, rounded up."""
        return max(1, -(-images // self.global_batch))


def plan_batches(
    *, total_samples: int, global_batch: int, micro_batch: int | None, world: int
) -> BatchPlan:
    """Divide a run exactly, or say which numbers would divide.

    Args:
        total_samples: length of the run in samples, a multiple of `global_batch`.
        global_batch: samples per optimiser step, a multiple of `world`.
        micro_batch: cap on the samples per rank and forward pass; None for no cap.
        world: number of ranks.

    Raises:
        UserError: a number is not positive or does not divide; names the key and valid values.
    """
    named = {"total_samples": total_samples, "data.global_batch": global_batch}
    for key, value in named.items():
        if value < 1:
            raise UserError(f"{value} is not a positive number of samples", where=key)
    if micro_batch is not None and micro_batch < 1:
        raise UserError(f"{micro_batch} is not a positive number", where="data.micro_batch")
    if global_batch % world:
        raise UserError(
            f"{global_batch} does not divide by {world} ranks; "
            f"use {_either(_nearest_multiples(global_batch, world))}",
            where="data.global_batch",
        )
    per_rank = global_batch // world
    micro = per_rank if micro_batch is None else min(micro_batch, per_rank)
    if per_rank % micro:
        divisors = [d for d in range(1, per_rank + 1) if per_rank % d == 0]
        below = max(d for d in divisors if d < micro)
        above = min(d for d in divisors if d > micro)
        raise UserError(
            f"{global_batch} does not divide by {world} ranks x {micro}; "
            f"use data.micro_batch {below} or {above}, or data.global_batch "
            f"{_either(_nearest_multiples(global_batch, world * micro))}",
            where="data.micro_batch",
        )
    if total_samples % global_batch:
        raise UserError(
            f"{total_samples} is not a whole number of steps of {global_batch}; "
            f"use {_either(_nearest_multiples(total_samples, global_batch))}",
            where="total_samples",
        )
    return BatchPlan(
        total_samples=total_samples, global_batch=global_batch, world=world, micro=micro
    )


def _nearest_multiples(value: int, unit: int) -> list[int]:
    below = value // unit * unit
    return [multiple for multiple in (below, below + unit) if multiple > 0]


def _either(values: list[int]) -> str:
    return " or ".join(str(value) for value in values)


class PositionBatches(Sampler[list[int]]):
    """The positions of each micro-batch of one rank, from `start` to the end of the run.

    Position p belongs to step p // global_batch whatever the world size and accumulation, so these
    change no step's set of samples. The length is that of the whole run, not of what remains:
    Lightning adds the batches already done to its own count (framework.md §4.2).

    Args:
        plan: the run's division.
        rank: this process's rank, in [0, plan.world).
        start: the first position still to be seen; a multiple of plan.global_batch.
    """

    def __init__(self, plan: BatchPlan, *, rank: int, start: int = 0) -> None:
        assert 0 <= rank < plan.world
        assert start % plan.global_batch == 0
        self.plan = plan
        self.rank = rank
        self.start = start

    def __len__(self) -> int:
        return self.plan.batches

    def __iter__(self) -> Iterator[list[int]]:
        stride = self.plan.world * self.plan.micro
        for first in range(self.start, self.plan.total_samples, stride):
            yield list(range(first + self.rank, first + stride, self.plan.world))
