"""What happens around a step in every training module."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import pytest
import torch
from torch import Tensor

from lit_restore.data.batch import Batch
from lit_restore.networks import UNet
from lit_restore.training.base import TrainingModule
from lit_restore.training.options import OptimizerOptions, ScheduleOptions


class Drawing(TrainingModule):
    """Its loss is what a layer with dropout would draw."""

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        return {"loss": torch.nn.functional.dropout(torch.ones(64), 0.5).mean()}


def drawing(monkeypatch: pytest.MonkeyPatch, *, rank: int, accumulation: int) -> TrainingModule:
    module = Drawing(
        UNet(widths=(8,), depths=(1,)),
        optimizer=OptimizerOptions(),
        schedule=ScheduleOptions(),
        clip_norm=None,
        seed=3,
    )
    trainer = SimpleNamespace(accumulate_grad_batches=accumulation)
    monkeypatch.setattr(Drawing, "trainer", trainer)
    monkeypatch.setattr(Drawing, "global_rank", rank)
    return module


def draw(module: TrainingModule, batch_idx: int) -> float:
    return float(module.training_step(cast(Batch, {}), batch_idx)["loss"])


def test_dropout_is_a_function_of_seed_rank_step_and_micro_batch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = drawing(monkeypatch, rank=0, accumulation=2)
    drawn = [draw(module, k) for k in range(20)]
    assert len(set(drawn)) > 5
    torch.rand(100)  # what was drawn before matters not, as after a resume
    assert [draw(module, k) for k in range(20)] == drawn
    other = drawing(monkeypatch, rank=1, accumulation=2)
    assert [draw(other, k) for k in range(20)] != drawn
    # The first micro-batch of a step is the same however many follow.
    alone = drawing(monkeypatch, rank=0, accumulation=1)
    assert [draw(alone, k) for k in range(10)] == drawn[::2]
