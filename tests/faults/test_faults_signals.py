"""A signal to any process at any time: code 75, no step lost, no process left, on two ranks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import write_shards
from support_live import Ranks, ranks, until
from support_runs import assert_same_run, last, rows, train, write_recipe

SHORT: dict[str, Any] = {
    "total_samples": 48,  # 6 steps
    "checkpoint": {"every": 24},
    "validation": {"every": 24},
    "samples": {"every": 24},
    "metrics": {"every": 8},
}
WHERE = {
    "train.step=term@2": 16,
    "val.batch=term@1": 24,
    "grid.draw=term@1": 24,
    "ckpt.write=term@1": 32,  # that save ends, and the next step has the one that counts
}
"""Failpoint → the position that is saved."""


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def uninterrupted(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted")
    assert train(write_recipe(folder, shards, **SHORT), folder / "run", world=2) == [0, 0]
    return folder / "run"


def assert_stopped(running: Ranks, run: Path, position: int, *, code: int = 75) -> None:
    assert running.wait() == [code] * running.world, running.text()
    for rank in range(running.world):
        assert "Traceback" not in running.text(rank), running.text(rank)
        assert len(running.errors(rank)) == 1, running.text(rank)
    status = json.loads((run / "STATUS.json").read_text())
    assert status["code"] == code
    assert status["state"] == {75: "preempted", 130: "interrupted"}[code]
    trained = rows(run / "trace.jsonl")[-1]["samples_seen"]
    assert status["samples_seen"] == trained == int(last(run).name[5:]) == position


@pytest.mark.parametrize("to", [" rank=0", " rank=1", ""])
@pytest.mark.parametrize("failpoint", WHERE)
def test_a_sigterm_anywhere_to_anyone_loses_no_step(
    shards: Path, tmp_path: Path, failpoint: str, to: str
) -> None:
    if failpoint.startswith("ckpt") and to == " rank=1":
        pytest.skip("rank 0 writes")
    recipe, run = write_recipe(tmp_path, shards, **SHORT), tmp_path / "run"
    with ranks(recipe, run, world=2, failpoint=failpoint + to, log=tmp_path / "log") as running:
        assert_stopped(running, run, WHERE[failpoint])


@pytest.mark.parametrize("failpoint", WHERE)
def test_a_sigterm_to_the_whole_group_with_its_data_workers_loses_no_step(
    shards: Path, tmp_path: Path, failpoint: str
) -> None:
    recipe, run = write_recipe(tmp_path, shards, **SHORT), tmp_path / "run"
    options = ("--data.workers=2",)
    with ranks(
        recipe, run, *options, world=2, failpoint=failpoint, to_group=True, log=tmp_path / "log"
    ) as running:
        assert_stopped(running, run, WHERE[failpoint])


def test_ctrl_c_to_the_whole_group_saves_too(shards: Path, tmp_path: Path) -> None:
    recipe, run = write_recipe(tmp_path, shards, **SHORT), tmp_path / "run"
    failpoint = "train.step=int@2"
    with ranks(
        recipe, run, "--data.workers=2", world=2, failpoint=failpoint, to_group=True,
        log=tmp_path / "log",
    ) as running:  # fmt: skip
        assert_stopped(running, run, 16, code=130)


def test_a_stopped_two_rank_run_goes_on_bit_equal(
    shards: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    recipe, run = write_recipe(tmp_path, shards, **SHORT), tmp_path / "run"
    assert train(recipe, run, world=2, failpoint="val.batch=term@1 rank=1") == [75, 75]
    assert train(recipe, run, world=2) == [0, 0]
    assert_same_run(uninterrupted, run)


@pytest.mark.parametrize(
    ("failpoint", "evaluated", "position"),
    [
        ("train.step=term@2 rank=1", 0, 32),  # asked before the first step, then after the fourth
        ("train.step=term@2 rank=1", 24, 24),  # a validation asks too
        ("val.batch=term@1 rank=1", 24, 24),  # and is never left without its save
        ("grid.draw=term@1 rank=1", 24, 32),  # came after the only picture's question
    ],
)
def test_ranks_may_ask_each_other_only_every_few_steps(
    shards: Path, tmp_path: Path, failpoint: str, evaluated: int, position: int
) -> None:
    every = {"validation": {"every": evaluated}, "samples": {"every": evaluated}}
    recipe, run = write_recipe(tmp_path, shards, **{**SHORT, **every}), tmp_path / "run"
    option = "--guard.poll_every=4"
    with ranks(recipe, run, option, world=2, failpoint=failpoint, log=tmp_path / "log") as running:
        assert_stopped(running, run, position)


def test_one_process_sees_its_signal_at_once_whatever_the_interval(
    shards: Path, tmp_path: Path
) -> None:
    recipe, run = write_recipe(tmp_path, shards, **SHORT), tmp_path / "run"
    failpoint = "train.step=term@2"
    with ranks(recipe, run, "--guard.poll_every=4", failpoint=failpoint, log=tmp_path / "log") as r:
        assert_stopped(r, run, 16)


def test_a_group_s_data_workers_are_found(shards: Path, tmp_path: Path) -> None:
    """The negative control of `no process left`: while the run lives, there are such processes."""
    recipe, run = write_recipe(tmp_path, shards, **SHORT), tmp_path / "run"
    failpoint = "train.step=sleep:1x*"
    with ranks(
        recipe, run, "--data.workers=2", failpoint=failpoint, log=tmp_path / "log"
    ) as running:
        until(lambda: len(running.members(0)) == 3)
        running.signal(0)
        assert running.wait() == [75]


def test_slurm_requeues_nothing_by_itself(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lightning would answer SIGUSR1 in a SLURM job with a save of its own and `scontrol`."""
    (tmp_path / "scontrol").write_text(f"#!/bin/sh\necho asked > {tmp_path}/asked\n")
    (tmp_path / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    for name, value in {
        "SLURM_NTASKS": "1", "SLURM_NTASKS_PER_NODE": "1", "SLURM_JOB_NAME": "train",
        "SLURM_JOB_ID": "4242", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    recipe, run = write_recipe(tmp_path, shards, **SHORT), tmp_path / "run"
    failpoint = "train.step=usr1@2"
    with ranks(recipe, run, failpoint=failpoint, log=tmp_path / "log") as running:
        assert_stopped(running, run, 16)
    assert not (tmp_path / "asked").exists()
    assert not list(run.rglob("*.ckpt"))
