"""A profile names the bottleneck by a rule, and leaves a trace and a page."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import write_shards
from support_runs import last, rows, train, write_recipe

from lit_restore.callbacks.bottleneck import Operation, StepProfile, bottleneck, page
from lit_restore.callbacks.phases import (
    BACKWARD,
    CALLBACKS,
    COMMUNICATION,
    DATA,
    EMA,
    FORWARD,
    LOOP,
    OPTIMISER,
    PHASES,
    TRANSFER,
    Phases,
    phase_of,
)
from lit_restore.io.by_path import write_by_path


def profiled(phases: dict[str, float], **over: Any) -> StepProfile:
    values: dict[str, Any] = {
        "phases": phases,
        "operations": (Operation(name="aten::convolution", seconds=0.9, calls=100),),
        "images": 16,
        "setting": "a network",
        "precision": "bf16-mixed",
        "compiled": False,
        "cuda": False,
        "memory_gb": 1.25,
        "flops": 2e9,
        "mfu": None,
    }
    return StepProfile(**{**values, **over})


WORK = {FORWARD: 0.3, BACKWARD: 0.6}


@pytest.mark.parametrize(
    ("beside", "begins", "mend"),
    [
        (
            {DATA: 0.679},
            "data: 43 % of the time waits for data",
            "raise data.workers or data.cache",
        ),
        ({COMMUNICATION: 0.3}, "communication: 25 %", "data.global_batch"),
        ({OPTIMISER: 0.2, EMA: 0.1}, "optimiser and EMA: 25 %", "ema.profiles"),
        ({TRANSFER: 0.3}, "transfer: 25 %", "data.degradation"),
        ({CALLBACKS: 0.2, LOOP: 0.1}, "callbacks: 25 %", "validation.every"),
        ({DATA: 0.4, OPTIMISER: 0.3}, "data: 25 %", "data.workers"),
        ({DATA: 0.3, OPTIMISER: 0.4}, "optimiser and EMA: 25 %", "data.global_batch"),
        ({DATA: 0.1}, "compute-bound: 90 %", "compile: true"),
    ],
)
def test_the_largest_share_beside_the_network_is_the_bottleneck(
    beside: dict[str, float], begins: str, mend: str
) -> None:
    sentence = bottleneck(profiled({**WORK, **beside}))
    assert sentence.startswith(begins)
    assert mend in sentence


def kernels(seconds: float, calls: float = 1000) -> tuple[Operation, ...]:
    return (Operation(name="kernel", seconds=seconds, calls=calls),)


def test_an_idle_gpu_is_launch_bound() -> None:
    found = bottleneck(profiled(WORK, cuda=True, operations=kernels(0.36)))
    assert found.startswith("launch-bound: the GPU is idle 60 % of the time, many small kernels")
    assert "compile: true" in found
    compiled = profiled(WORK, cuda=True, operations=kernels(0.36), compiled=True)
    assert "compile: true" not in bottleneck(compiled)
    assert "data.micro_batch" in bottleneck(compiled)


def test_tiny_operations_on_the_cpu_are_launch_bound() -> None:
    found = bottleneck(profiled(WORK, operations=kernels(0.9, calls=180_000)))
    assert found.startswith("launch-bound: many small operations, 5 µs on average")


def test_a_busy_device_is_compute_bound() -> None:
    busy: dict[str, Any] = {"cuda": True, "operations": kernels(0.85), "mfu": 0.41}
    assert bottleneck(profiled(WORK, **busy)) == (
        "compute-bound: 100 % is forward and backward at 41 % of the peak; compile: true"
    )
    full = bottleneck(profiled(WORK, **busy, precision="32-true", compiled=True))
    assert full.endswith("; trainer.precision: bf16-mixed")
    assert bottleneck(profiled(WORK, **busy, compiled=True)).endswith(
        "more devices, or a smaller network"
    )


def test_the_page_has_every_number_of_a_profile() -> None:
    text = page(profiled({**WORK, DATA: 0.1}, mfu=0.123))
    assert "| images per second | 16 |" in text
    assert "| a step | 1000 ms |" in text
    assert "| data wait | 10 % |" in text
    assert "| memory | 1.25 GB |" in text
    assert "| GFLOPs an image | 2 |" in text
    assert "| MFU | 12.3 % |" in text
    assert "| backward | 600 | 60.0 % |" in text
    assert "| aten::convolution | 900 | 100.0 % | 100 |" in text
    assert len(text.splitlines()) < 60


def test_the_page_lists_ten_operations_and_admits_what_is_not_known() -> None:
    many = tuple(Operation(name=f"op{k}|x", seconds=1 / (k + 1), calls=1) for k in range(30))
    text = page(profiled(WORK, operations=many, flops=None))
    assert "| op9\\|x |" in text
    assert "op10" not in text
    assert "| MFU | not known for this device |" in text


# --- phases -----------------------------------------------------------------------------------


def test_every_action_of_a_step_is_a_phase() -> None:
    assert {
        phase_of(action)
        for action in (
            "[_TrainingEpochLoop].train_dataloader_next",
            "[Strategy]DDPStrategy.batch_to_device",
            "[Strategy]SingleDeviceStrategy.training_step",
            "[Strategy]SingleDeviceStrategy.backward",
            "[LightningModule]DenoiserPretraining.optimizer_step",
            "[Callback]EMA.on_train_batch_end",
            "[Callback]Metrics{'every': 3}.on_train_batch_end",
        )
    } == set(PHASES) - {COMMUNICATION, LOOP}
    assert phase_of("[Callback]EMA.on_before_backward") is None  # inside the backward pass
    assert phase_of("run_training_epoch") is None


def test_a_phase_is_timed_without_what_is_inside_it() -> None:
    now = [0.0]
    phases = Phases(torch.device("cpu"), lambda: now[0])

    def action(name: str, *inside: Any, before: float = 0.0, after: float = 0.0) -> Any:
        def run() -> None:
            with phases.profile(name):
                now[0] += before
                for other in inside:
                    other()
                now[0] += after

        return run

    def others() -> None:
        phases.begin(COMMUNICATION)
        now[0] += 7

    phases.timing = True
    phases.step()
    forward = action("[Strategy]S.training_step", before=10)
    backward = action("[Strategy]S.backward", others, before=20)
    action("[LightningModule]M.optimizer_step", forward, backward, after=3)()
    now[0] += 0.5
    action("[Callback]EMA.on_train_batch_end", before=1)()
    action("[_TrainingEpochLoop].train_dataloader_next", before=2)()
    phases.step()
    assert phases.seconds() == {
        DATA: 2, FORWARD: 10, BACKWARD: 20, COMMUNICATION: 7, OPTIMISER: 3, EMA: 1, LOOP: 0.5,
    }  # fmt: skip
    assert phases.seconds() == {}


# --- files ------------------------------------------------------------------------------------


def test_a_file_written_by_path_is_there_as_a_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "in" / "trace.json"
    target.parent.mkdir()
    write_by_path(target, lambda path: void(Path(path).write_text("one")), drafts=tmp_path)
    assert target.read_text() == "one"

    def fails(path: str) -> None:
        Path(path).write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        write_by_path(target, fails, drafts=tmp_path)
    with pytest.raises(OSError, match="nothing was written"):
        write_by_path(target, lambda path: None, drafts=tmp_path)
    assert target.read_text() == "one"
    assert [p.name for p in tmp_path.iterdir()] == ["in"]


def void(_: object) -> None:
    """Drops a value."""


# --- real runs ----------------------------------------------------------------------------------


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    folder = tmp_path / "shards"
    folder.mkdir()
    return write_shards(folder)


PROFILE = {"profile": {"enabled": True, "steps": 2}, "metrics": {"every": 8}}


def test_a_profiled_run_leaves_a_trace_and_a_page_and_trains_the_same(
    tmp_path: Path, shards: Path
) -> None:
    plain, watched = tmp_path / "plain", tmp_path / "watched"
    recipe = write_recipe(tmp_path, shards, metrics={"every": 8})
    assert train(recipe, plain) == [0]
    recipe = write_recipe(tmp_path, shards, **PROFILE)
    output = tmp_path / "log"
    assert train(recipe, watched, output=output) == [0]

    lines = (tmp_path / "log.0").read_text().splitlines()
    summary = watched / "profile" / "summary.md"
    text = summary.read_text()
    sentence = next(line for line in text.splitlines() if line.startswith("**")).strip("*")
    assert lines[-1] == f"{summary}: {sentence}"
    for name in (DATA, FORWARD, BACKWARD, OPTIMISER, EMA):
        assert f"| {name} |" in text
    assert "aten::" in text
    assert "2 steps of 8 images" in text

    trace = json.loads((watched / "profile" / "trace.json").read_text())
    marks = [e["name"] for e in trace["traceEvents"] if e.get("cat") == "user_annotation"]
    assert marks.count(FORWARD) == marks.count(BACKWARD) == 2
    assert sorted(p.name for p in (watched / "profile").iterdir()) == ["summary.md", "trace.json"]

    assert rows(plain / "metrics.jsonl") == rows(watched / "metrics.jsonl")
    assert last(plain).name == last(watched).name


def test_two_ranks_time_their_communication_and_record_their_skew(
    tmp_path: Path, shards: Path
) -> None:
    run_dir = tmp_path / "run"
    recipe = write_recipe(tmp_path, shards, **PROFILE)
    assert train(recipe, run_dir, world=2, output=tmp_path / "log") == [0, 0]
    records = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    trained = [record for record in records if record["kind"] == "train"]
    assert "skew" not in trained[0]  # the first micro-batches are not measured
    assert all(record["skew"] >= 1 for record in trained[4:])
    text = (run_dir / "profile" / "summary.md").read_text()
    assert f"| {COMMUNICATION} |" in text
    assert "(2 rank x 1 x 4)" in text


def test_a_run_too_short_for_a_profile_is_refused_with_its_length(
    tmp_path: Path, shards: Path
) -> None:
    recipe = write_recipe(tmp_path, shards, profile={"enabled": True, "steps": 6})
    assert train(recipe, tmp_path / "run", output=tmp_path / "log") == [2]
    error = (tmp_path / "log.0").read_text().splitlines()[-1]
    assert error == (
        "error: profile.steps: 6 need 14 steps of 8 images, and 12 are left; "
        "set total_samples to 112 or more"
    )


def test_two_profilers_are_refused(tmp_path: Path, shards: Path) -> None:
    recipe = write_recipe(tmp_path, shards, **PROFILE)
    codes = train(recipe, tmp_path / "run", "--trainer.profiler", "simple", output=tmp_path / "log")
    assert codes == [2]
    assert "profile.enabled: is set beside trainer.profiler" in (tmp_path / "log.0").read_text()
