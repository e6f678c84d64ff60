"""The launch commands of docs/distributed.md, as they are written there."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import write_shards
from support_fork import _free_port
from support_live import group, until
from support_runs import last, write_recipe

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
SHORT: dict[str, Any] = {
    "total_samples": 96,
    "checkpoint": {"every": 24},
    "validation": {"every": 48},
    "samples": {"every": 0, "count": 0},
}


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    (tmp_path / "shards").mkdir()
    return write_recipe(tmp_path, write_shards(tmp_path / "shards"), **SHORT)


def documented(recipe: Path, run: Path) -> list[str]:
    """The torchrun command of the documentation, on a small recipe and a free port."""
    text = (ROOT / "docs/distributed.md").read_text().replace("\\\n", " ")
    found = re.search(r"OMP_NUM_THREADS=1 (torchrun .*)", text)
    assert found is not None
    words = shlex.split(found[1])
    words[0:1] = [sys.executable, "-m", "torch.distributed.run"]
    for option, value in {
        "-c": str(recipe), "--run_dir": str(run), "--total_samples": "96",
        "--rdzv_endpoint": f"localhost:{_free_port()}",
    }.items():  # fmt: skip
        words[words.index(option) + 1] = value
    return words


def start(words: list[str], log: Path, **variables: str) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
    with log.open("wb") as file:
        return subprocess.Popen(
            words, cwd=ROOT, env=environment, stdout=file, stderr=file, start_new_session=True
        )


def end(process: subprocess.Popen[bytes], seconds: float) -> int:
    try:
        return process.wait(seconds)
    finally:
        if group(process.pid):
            os.killpg(process.pid, signal.SIGKILL)
            pytest.fail("processes were left")


def status(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "STATUS.json").read_text())
    return found


def test_the_torchrun_command_of_the_docs(recipe: Path, tmp_path: Path) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    assert end(start(documented(recipe, run), log), 300) == 0, log.read_text()
    assert status(run)["state"] == "done"
    assert last(run).name == "step-000000000096"
    assert "(2 rank x 1 x 4)" in log.read_text()


def test_torchrun_starts_all_ranks_again_and_they_go_on(recipe: Path, tmp_path: Path) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    words = documented(recipe, run)
    words[3:3] = ["--max-restarts", "2"]
    variables = {
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
        "LIT_RESTORE_FAILPOINTS": "train.step=kill@7 rank=1",  # only the first start gets so far
    }
    assert end(start(words, log, **variables), 400) == 0, log.read_text()
    text = log.read_text()
    assert re.search(r"error: rank 1 \(pid \d+\) died; saved up to (24|48) samples", text), text
    assert "resumed from" in text
    assert status(run)["state"] == "done"


@pytest.mark.parametrize("to", ["rank 0", "all"])
def test_ranks_that_lightning_started_all_stop_with_the_first(
    recipe: Path, tmp_path: Path, to: str
) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    process = start(plain(recipe, run), log, LIT_RESTORE_FAILPOINTS="train.step=sleep:0.3x*")
    until(lambda: (run / "checkpoints/step-000000000024/COMPLETE").exists(), 200)
    if to == "all":
        os.killpg(process.pid, signal.SIGTERM)
    else:
        process.terminate()
    assert end(process, 100) == 75, log.read_text()
    assert status(run)["state"] == "preempted"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_child_that_is_lost_is_named_and_ended(recipe: Path, tmp_path: Path, number: int) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    words = [*plain(recipe, run), "--guard.hang_timeout", "5"]
    process = start(words, log, LIT_RESTORE_FAILPOINTS="train.step=sleep:0.3x*")
    until(lambda: (run / "checkpoints/step-000000000024/COMPLETE").exists(), 200)
    (child,) = [pid for pid in group(process.pid) if pid != process.pid]
    os.kill(child, number)
    assert end(process, 200) == 77, log.read_text()
    assert f"error: rank 1 (pid {child})" in log.read_text()
    assert status(run)["code"] == 77


def test_children_leave_with_the_first_rank_also_before_they_met(
    recipe: Path, tmp_path: Path
) -> None:
    """The parent dies while its child still imports: nobody would ever join it."""
    process = start(plain(recipe, tmp_path / "run"), tmp_path / "log")
    until(lambda: len(group(process.pid)) == 2, 200)
    time.sleep(1)
    process.kill()
    until(lambda: group(process.pid) == [], 100)


def plain(recipe: Path, run: Path) -> list[str]:
    return [
        sys.executable, "train.py", "fit", "-c", str(recipe), "--run_dir", str(run),
        "--trainer.strategy", "ddp", "--trainer.devices", "2",
    ]  # fmt: skip
