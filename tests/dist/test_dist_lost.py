"""A rank or data worker that is gone or hangs ends the run in bounded time, with one line."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import write_shards
from support_live import SLACK, Ranks, ranks, until
from support_runs import last, train, write_recipe

SHORT: dict[str, Any] = {
    "total_samples": 96,  # 12 steps
    "checkpoint": {"every": 24},
    "validation": {"every": 48},
    "samples": {"every": 0, "count": 0},
    "metrics": {"every": 8},
}
HANG = 3
"""Seconds; the first step and saves have three times as many."""


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("data"))


def status(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "STATUS.json").read_text())
    return found


def assert_one_line(running: Ranks, rank: int, pattern: str) -> None:
    assert "Traceback" not in running.text(rank), running.text(rank)
    assert len(running.errors(rank)) == 1, running.text(rank)
    assert re.fullmatch(f"error: {pattern}", running.errors(rank)[0]), running.errors(rank)


# Killed -------------------------------------------------------------------------------------------


def slow(*values: object) -> Any:
    """A case that the default suite leaves out: one of its kind is enough there."""
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    "failpoint", ["train.step=kill@5 rank=1", slow("train.step=stop@5 rank=1")]
)
def test_sharded_parameters_are_watched_the_same(
    shards: Path, tmp_path: Path, failpoint: str
) -> None:
    recipe, run = write_recipe(tmp_path, shards, **SHORT), tmp_path / "run"
    options = (f"--guard.hang_timeout={HANG}", "--trainer.strategy=fsdp2")
    with ranks(
        recipe, run, *options, world=2, failpoint=failpoint, log=tmp_path / "log"
    ) as running:
        until(lambda: not running.members(0), 60 + (HANG + 35) * SLACK)
        os.kill(running.pids[1], signal.SIGKILL)
        assert running.wait()[0] == 77
        assert_one_line(running, 0, r"rank 1 \(pid \d+\) (died|is stopped and .*); saved up to .*")


@pytest.mark.parametrize("dies", [0, 1])
@pytest.mark.parametrize(
    "failpoint", ["train.step=kill@5", slow("val.batch=kill@1"), slow("data.decode=kill@9")]
)
def test_a_killed_rank_is_named_and_the_other_leaves(
    shards: Path, tmp_path: Path, failpoint: str, dies: int
) -> None:
    recipe, run = write_recipe(tmp_path, shards, **SHORT), tmp_path / "run"
    failpoint = f"{failpoint} rank={dies}"
    with ranks(recipe, run, world=2, failpoint=failpoint, log=tmp_path / "log") as running:
        ended = {}
        until(lambda: not running.members(dies), 60)
        since = time.monotonic()
        ended = running.wait()
        assert time.monotonic() - since < 10 * SLACK
        assert ended[dies] == -signal.SIGKILL
        assert ended[1 - dies] == 77
        saved = r"(saved up to (24|48) samples|nothing saved yet)"
        pattern = rf"rank {dies} \(pid {running.pids[dies]}\) died; {saved}, start again"
        assert_one_line(running, 1 - dies, pattern)
    assert status(run)["code"] == 77
    assert status(run)["state"] == "failed"
    assert f"rank {dies}" in status(run)["message"]


def test_three_ranks_name_the_one_that_died_and_not_each_other(
    shards: Path, tmp_path: Path
) -> None:
    recipe = write_recipe(tmp_path, shards, **{**SHORT, "data": {"global_batch": 12}})
    run, failpoint = tmp_path / "run", "train.step=kill@3 rank=1"
    options = ("--total_samples=96",)
    with ranks(
        recipe, run, *options, world=3, failpoint=failpoint, log=tmp_path / "log"
    ) as running:
        assert running.wait() == [77, -signal.SIGKILL, 77]
        for rank in (0, 2):
            assert_one_line(running, rank, r"rank 1 \(pid \d+\) died; .*")


def test_a_rank_that_is_killed_while_the_other_waits_in_no_collective(
    shards: Path, tmp_path: Path
) -> None:
    """As with NCCL, where a collective may wait for a dead rank: the thread ends the process."""
    recipe, run = write_recipe(tmp_path, shards, **SHORT), tmp_path / "run"
    failpoint = "train.step=kill@5 rank=1; train.step=sleep:100@5 rank=0"
    with ranks(recipe, run, world=2, failpoint=failpoint, log=tmp_path / "log") as running:
        until(lambda: not running.members(1), 60)
        since = time.monotonic()
        assert running.wait() == [77, -signal.SIGKILL]
        assert time.monotonic() - since < 10 * SLACK
        assert_one_line(running, 0, r"rank 1 \(pid \d+\) died; saved up to 24 samples, start again")
    assert status(run)["code"] == 77


def test_after_a_lost_rank_the_same_command_goes_on(shards: Path, tmp_path: Path) -> None:
    recipe, run = write_recipe(tmp_path, shards, **SHORT), tmp_path / "run"
    assert sorted(train(recipe, run, world=2, failpoint="train.step=kill@7 rank=1")) == [-9, 77]
    assert last(run).name == "step-000000000048"
    assert train(recipe, run, world=2) == [0, 0]
    assert status(run)["state"] == "done"


# Stopped, or hung ---------------------------------------------------------------------------------


def test_a_stopped_rank_is_named_when_the_collective_times_out(
    shards: Path, tmp_path: Path
) -> None:
    recipe, run = write_recipe(tmp_path, shards, **SHORT), tmp_path / "run"
    failpoint = "train.step=stop@5 rank=1"
    option = f"--guard.hang_timeout={HANG}"
    with ranks(recipe, run, option, world=2, failpoint=failpoint, log=tmp_path / "log") as running:
        until(lambda: not running.members(0), 60 + (HANG + 35) * SLACK)
        os.kill(running.pids[1], signal.SIGKILL)
        assert running.wait() == [77, -signal.SIGKILL]
        assert_one_line(running, 0, r"rank 1 \(pid \d+\) is stopped and did not answer in time; .*")
    assert status(run)["code"] == 77


@pytest.mark.slow
def test_without_a_time_out_nobody_notices_a_stopped_rank(shards: Path, tmp_path: Path) -> None:
    """The negative control."""
    recipe, run = write_recipe(tmp_path, shards, **SHORT), tmp_path / "run"
    failpoint = "train.step=stop@5 rank=1"
    option = "--guard.hang_timeout=0"
    with ranks(recipe, run, option, world=2, failpoint=failpoint, log=tmp_path / "log") as running:
        until(lambda: (run / "checkpoints/step-000000000024/COMPLETE").exists())
        time.sleep(2 * HANG)
        assert running.members(0)
        for pid in running.pids:
            os.kill(pid, signal.SIGKILL)
        running.wait()


@pytest.mark.parametrize("where", ["train.step", slow("val.batch"), slow("grid.draw")])
def test_a_hung_process_shows_its_stacks_and_leaves(
    shards: Path, tmp_path: Path, where: str
) -> None:
    over = {**SHORT, "samples": {"every": 24, "count": 1}}
    recipe, run = write_recipe(tmp_path, shards, **over), tmp_path / "run"
    with ranks(
        recipe, run, "--guard.hang_timeout=1", failpoint=f"{where}=sleep:100@2", log=tmp_path / "l"
    ) as running:
        assert running.wait(60) == [1]
        assert "most recent call first" in running.text()
        assert "failpoints.py" in running.text()
    assert status(run)["state"] == "running"  # it had no time to say more


def test_a_save_has_a_longer_budget_than_a_step(shards: Path, tmp_path: Path) -> None:
    recipe, run = write_recipe(tmp_path, shards, **SHORT), tmp_path / "run"
    option = "--guard.hang_timeout=1.5"
    failpoint = "ckpt.manifest=sleep:2.5@1"
    with ranks(recipe, run, option, failpoint=failpoint, log=tmp_path / "log") as running:
        assert running.wait() == [0], running.text()


@pytest.mark.parametrize("failpoint", ["train.step=raise@2", slow(""), slow("train.step=term@2")])
def test_the_guard_is_not_left_armed(shards: Path, tmp_path: Path, failpoint: str) -> None:
    from support_fork import fork, wait_all

    from lit_restore.cli.train import main
    from lit_restore.io import failpoints

    recipe, run = write_recipe(tmp_path, shards, **SHORT), tmp_path / "run"

    def one() -> int:
        argv = ["fit", "-c", str(recipe), "--run_dir", str(run), "--guard.hang_timeout=1"]
        with failpoints.armed(failpoint):
            main(argv)
        time.sleep(5)  # the start-up budget is three
        return 42

    assert wait_all([fork(one, env={}, output=tmp_path / "log")], 60) == [42]


# Ended by itself ----------------------------------------------------------------------------------


def test_the_error_of_one_rank_is_what_all_ranks_report(shards: Path, tmp_path: Path) -> None:
    recipe, run = write_recipe(tmp_path, shards, **SHORT), tmp_path / "run"
    failpoint = "train.loss_nan=nan@2 rank=1"  # one rank's loss: the gradient of all
    option = "--guard.on_nonfinite=stop"
    with ranks(recipe, run, option, world=2, failpoint=failpoint, log=tmp_path / "log") as running:
        assert set(running.wait()) <= {76, 77}
    assert status(run)["code"] == 76
    assert "not finite" in status(run)["message"]


@pytest.mark.parametrize("fails", [0, 1])
def test_a_bug_on_one_rank_keeps_its_traceback_and_the_others_say_who(
    shards: Path, tmp_path: Path, fails: int
) -> None:
    recipe, run = write_recipe(tmp_path, shards, **SHORT), tmp_path / "run"
    failpoint = f"train.step=raise@5 rank={fails}"
    with ranks(recipe, run, world=2, failpoint=failpoint, log=tmp_path / "log") as running:
        codes = running.wait()
        assert codes[fails] == 1
        assert codes[1 - fails] == 77
        assert "Traceback" in running.text(fails)
        assert_one_line(
            running, 1 - fails, rf"rank {fails} \(pid \d+\) ended: RuntimeError: failpoint.*"
        )
    assert status(run)["code"] == 1  # the cause, not that rank 0 lost a connection


def test_what_only_looks_like_a_lost_connection_stays_a_bug(shards: Path, tmp_path: Path) -> None:
    """With one process there is nobody to lose."""
    from lit_restore.callbacks.peers import is_lost_connection

    recipe, run = write_recipe(tmp_path, shards, **SHORT), tmp_path / "run"
    with ranks(recipe, run, failpoint="train.step=raise@2", log=tmp_path / "log") as running:
        assert running.wait() == [1]
        assert "Traceback" in running.text()
    assert is_lost_connection(RuntimeError("[pair.cc:545] Connection closed by peer [::1]:1"))
    assert not is_lost_connection(ConnectionResetError("Connection reset by peer"))
    assert not is_lost_connection(
        RuntimeError("Caught RuntimeError in DataLoader worker process 0. Connection refused")
    )
    assert not is_lost_connection(RuntimeError("The size of tensor a (3) must match"))
    assert not is_lost_connection(RuntimeError("NCCL error: invalid usage, Duplicate GPU detected"))


# Data workers -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "name"),
    [(signal.SIGKILL, r"SIGKILL \(memory\?\)"), (signal.SIGSEGV, "SIGSEGV")],
)
@pytest.mark.parametrize("world", [1, slow(2)])
def test_a_data_worker_that_dies_is_named_with_its_signal(
    shards: Path, tmp_path: Path, number: int, name: str, world: int
) -> None:
    recipe, run = write_recipe(tmp_path, shards, **SHORT), tmp_path / "run"
    with ranks(
        recipe, run, "--data.workers=2", world=world, failpoint="train.step=sleep:0.5x*",
        log=tmp_path / "log",
    ) as running:  # fmt: skip
        until(lambda: (run / "checkpoints/step-000000000024/COMPLETE").exists())
        workers = [pid for pid in running.members(0) if pid != running.pids[0]]
        for pid in workers:
            os.kill(pid, number)
        assert running.wait() == [77] * world, running.text()
        pattern = rf"(data worker \(pid [\d, ]+\)|a data worker) was killed by {name}; .*"
        assert_one_line(running, 0, pattern)
        if world > 1:
            assert_one_line(running, 1, rf"(rank 0 \(pid \d+\) ended: )?{pattern}")
    assert status(run)["code"] == 77


def test_full_shared_memory_names_the_mend() -> None:
    from lit_restore.callbacks.dead_workers import dead_worker

    for text in (
        "unable to allocate shared memory(shm) for file </torch_1_2_3>: Resource temporarily "
        "unavailable (11)",
        "unable to write to file </torch_1_2_3>: No space left on device (28)",
        "DataLoader worker (pid 4) is killed by signal: Bus error. It is possible that dataloader's"
        " workers are out of shared memory. Please try to raise your shared memory limit.",
    ):
        line = str(dead_worker(RuntimeError(text)))
        assert "--shm-size" in line
        assert "data.workers=0" in line
    assert dead_worker(RuntimeError("CUDA out of memory")) is None
    kernel = "out of resource: shared memory, Required: 262144, Hardware limit: 232448"
    assert dead_worker(RuntimeError(kernel)) is None
    assert dead_worker(ConnectionResetError(104, "Connection reset by peer")) is None  # no loader's
