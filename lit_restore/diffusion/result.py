"""What sampling gives back."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Result:
    """Samples, and what they cost."""

    samples: Tensor
    """(B, …), at the last time."""
    nfe: Tensor
    """(B,) int64 on the CPU: evaluations of the field that the solver made for each sample. A
    guided evaluation counts once, though the network then sees the sample twice."""
    finished: Tensor
    """(B,) bool on the CPU: the last time was reached. False where an adaptive solver gave up
    on a sample, which is then returned as far as it came."""
    network_calls: int | None = None
    """Forward passes of the network, of any batch size; None where no `FlowPrior` counted."""
    network_rows: int | None = None
    """Samples that passed through the network, the measure of what was computed."""


def result_of(samples: Tensor, nfe: int) -> Result:
    """The result of a solver that does the same for every sample."""
    count = len(samples)
    return Result(
        samples=samples,
        nfe=torch.full((count,), nfe, dtype=torch.int64),
        finished=torch.ones(count, dtype=torch.bool),
    )
