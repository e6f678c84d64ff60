"""Schedules and optimisers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lit_restore.training.options import OptimizerOptions, ScheduleOptions


def test_the_paper_s_step_decay_ends_where_the_paper_says() -> None:
    # dpir.md section 2: 2e-4 * 0.999^floor(s / 2000) ends at 1.21e-4 after 1 M steps of 8.
    schedule = ScheduleOptions(name="step", gamma=0.999, every=16000)
    assert 2e-4 * schedule.factor(8_000_000 - 8, 8_000_000) == pytest.approx(1.21e-4, rel=5e-3)


def test_warm_up_rises_linearly_and_cosine_ends_at_final() -> None:
    schedule = ScheduleOptions(name="cosine", warmup=100, final=0.1)
    assert schedule.factor(49, 1000) == pytest.approx(0.5)
    assert schedule.factor(100, 1000) == pytest.approx(1.0)
    assert schedule.factor(550, 1000) == pytest.approx(0.55)
    assert schedule.factor(1000, 1000) == pytest.approx(0.1)


def test_linear_is_a_line() -> None:
    schedule = ScheduleOptions(name="linear")
    assert [schedule.factor(k, 8) for k in (0, 2, 4, 8)] == [1.0, 0.75, 0.5, 0.0]


def test_only_kernels_decay() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    optimizer = OptimizerOptions(weight_decay=0.1).build(net.parameters())
    decays = {p.ndim: g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    assert decays == {4: 0.1, 1: 0.0}
    assert isinstance(optimizer, torch.optim.AdamW)
