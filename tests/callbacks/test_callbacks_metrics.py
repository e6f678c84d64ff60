"""What a training record holds, and what of it differs between equal runs."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import write_shards
from support_runs import rows, train, write_recipe

from lit_restore.callbacks.metrics import Metrics
from lit_restore.callbacks.progress import describe
from lit_restore.callbacks.records import TIMING


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    folder = tmp_path / "shards"
    folder.mkdir()
    return write_shards(folder)


def test_a_record_has_speed_and_memory_and_the_first_one_the_arithmetic(
    tmp_path: Path, shards: Path
) -> None:
    run_dir = tmp_path / "run"
    assert train(write_recipe(tmp_path, shards), run_dir, output=tmp_path / "log") == [0]
    records = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    trained = [record for record in records if record["kind"] == "train"]
    always = {"loss", "lr", "gradient_norm", "skipped_steps", "memory_gb", *TIMING[:3]}
    assert all(always <= record.keys() for record in trained)
    assert all(0.05 < record["memory_gb"] < 50 for record in trained)
    assert all(0 <= record["data_wait"] <= 1 for record in trained)
    assert "gflops_per_image" in trained[0]
    assert not any("gflops_per_image" in record for record in trained[1:])
    # No peak of a CPU is known, and there is no rank to lag behind.
    assert not any(name in record for record in trained for name in ("mfu", "skew"))


def test_what_is_measured_is_outside_bit_equality(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps({"loss": 1.0, **dict.fromkeys(TIMING, 0.5)}) + "\n")
    assert rows(path) == [{"loss": 1.0}]
    assert {"mfu", "memory_gb", "skew"} <= set(TIMING)


def machine(world: int, gathered: list[list[float]], *, first: bool = True) -> tuple[Any, Any]:
    """A trainer whose other ranks measured `gathered`: [seconds, gigabytes] of each."""

    def reduce(mine: torch.Tensor, reduce_op: str) -> torch.Tensor:
        assert reduce_op == "sum"
        assert mine.tolist()[0] == [0.1, *[0.0] * (world - 1)]
        return torch.tensor(gathered).double().T

    trainer = SimpleNamespace(
        world_size=world,
        global_rank=0,
        is_global_zero=first,
        strategy=SimpleNamespace(reduce=reduce),
    )
    return trainer, SimpleNamespace(device=torch.device("cpu"))


def test_mfu_is_recorded_where_the_peak_is_known() -> None:
    metrics = Metrics()
    trainer, module = machine(1, [])
    metrics.flops, metrics.peak = 2e9, 1e13
    assert metrics._machine(trainer, module, 1000.0)["mfu"] == pytest.approx(0.2)
    metrics.peak = None
    assert "mfu" not in metrics._machine(trainer, module, 1000.0)


def test_a_rank_that_lags_is_told_of_once(caplog: pytest.LogCaptureFixture) -> None:
    metrics = Metrics()
    metrics._own = SimpleNamespace(mean=lambda: 0.1)  # type: ignore[assignment]
    trainer, module = machine(3, [[0.1, 2.0], [0.1, 7.0], [0.5, 3.0]])
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            values = metrics._machine(trainer, module, 1000.0)
    assert values["skew"] == pytest.approx(5)
    assert values["memory_gb"] == 7.0  # of the rank that takes most
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith("rank 2 takes 5.0 times as long")


@pytest.mark.parametrize(
    ("gathered", "first"),
    [([[0.1, 1.0], [0.29, 1.0], [0.1, 1.0]], True), ([[0.1, 1.0], [9.0, 1.0]], False)],
)
def test_no_warning_of_a_little_skew_or_on_other_ranks(
    gathered: list[list[float]], first: bool, caplog: pytest.LogCaptureFixture
) -> None:
    metrics = Metrics()
    metrics._own = SimpleNamespace(mean=lambda: 0.1)  # type: ignore[assignment]
    metrics._machine(*machine(len(gathered), gathered, first=first), 1000.0)
    assert not caplog.messages


def test_the_progress_line_shows_more_where_there_is_room() -> None:
    record = {
        "loss": 0.00123, "psnr": 30.1, "images_per_second": 85.0, "data_wait": 0.03,
        "mfu": 0.41, "memory_gb": 12.34,
    }  # fmt: skip
    short = "loss 0.00123  psnr 30.10 dB  85 img/s  data wait 3 %"
    assert describe(record) == f"{short}  MFU 41 %  12.3 GB"
    assert describe(record, width=len(short) + 11) == f"{short}  MFU 41 %"
    assert describe(record, width=10) == short
    assert "GB" not in describe({**record, "skipped_steps": 12.0}, width=len(short) + 12)
