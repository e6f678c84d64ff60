"""The batch script, with an `srun`, a `scontrol` and a training that only pretend."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "configs/trainer/train.sbatch"
PRETEND = """#!/bin/bash
# srun drops its own options; python is real but for train.py, which leaves what it is told to.
case $(basename "$0") in
  srun) while [[ $1 == --* ]]; do shift; done; exec "$@" ;;
  scontrol) echo "$@" >> "$LOG/scontrol" ;;
  python)
    if [ "$1" = train.py ]; then
      echo "$@" >> "$LOG/train"
      [ -n "$STATE" ] && mkdir -p "$LOG/run" && cat > "$LOG/run/STATUS.json" <<END
{"state": "$STATE", "code": ${CODE:-null}, "samples_seen": ${SEEN:-8}, "checkpoint": null,
 "message": "", "host": "node7", "pid": 1, "time": 0}
END
      exit "${EXIT:-$CODE}"
    fi
    exec "$REAL" "$@" ;;
esac
"""


@pytest.fixture
def cluster(tmp_path: Path) -> dict[str, str]:
    """An environment in which the commands of SLURM are ours."""
    (tmp_path / "bin").mkdir()
    for name in ("srun", "scontrol", "python"):
        (tmp_path / "bin" / name).write_text(PRETEND)
        (tmp_path / "bin" / name).chmod(0o755)
    return {
        **os.environ, "PATH": f"{tmp_path}/bin:{os.environ['PATH']}", "LOG": str(tmp_path),
        "REAL": sys.executable, "SLURM_JOB_ID": "4242", "SLURM_JOB_NUM_NODES": "2",
    }  # fmt: skip


def submit(cluster: dict[str, str], *words: str, **variables: str) -> tuple[int, int]:
    """Exit code of the job, and how often it has been put back into the queue."""
    log = Path(cluster["LOG"])
    words = words or ("recipe.yaml", "--run_dir", str(log / "run"), "--data.workers", "4")
    done = subprocess.run(
        ["bash", str(SCRIPT), *words], cwd=ROOT, env={**cluster, **variables}, timeout=120,
        capture_output=True, text=True,
    )  # fmt: skip
    asked = log / "scontrol"
    lines = asked.read_text().splitlines() if asked.exists() else []
    assert set(lines) <= {"requeue 4242"}
    return done.returncode, len(lines)


@pytest.mark.parametrize(
    ("state", "code", "again"),
    [("done", 0, 0), ("preempted", 75, 1), ("failed", 77, 1), ("failed", 76, 0), ("failed", 2, 0),
     ("interrupted", 130, 0), ("failed", 74, 0)],
)  # fmt: skip
def test_the_job_goes_back_into_the_queue_where_that_helps(
    cluster: dict[str, str], state: str, code: int, again: int
) -> None:
    assert submit(cluster, STATE=state, CODE=str(code)) == (code, again)
    given = Path(cluster["LOG"], "train").read_text()
    assert given.startswith("train.py fit -c recipe.yaml -c configs/trainer/slurm.yaml")
    assert "--trainer.num_nodes 2 --run_dir" in given
    assert "--data.workers 4" in given


def test_a_killed_run_goes_back_and_a_refused_command_does_not(cluster: dict[str, str]) -> None:
    assert submit(cluster, STATE="running", EXIT="137") == (137, 1)
    assert submit(cluster, STATE="", EXIT="2") == (2, 1)  # STATUS.json is the old one


def test_it_gives_up_after_three_times_without_progress(cluster: dict[str, str]) -> None:
    counts = [submit(cluster, STATE="failed", CODE="77")[1] for _ in range(5)]
    assert counts == [1, 2, 3, 3, 3]
    assert submit(cluster, STATE="failed", CODE="77", SEEN="16")[1] == 4


def test_a_run_folder_with_an_equals_sign_is_understood(cluster: dict[str, str]) -> None:
    words = ("recipe.yaml", f"--run_dir={cluster['LOG']}/run")
    assert submit(cluster, *words, STATE="preempted", CODE="75") == (75, 1)


@pytest.mark.parametrize("words", [("recipe.yaml",), ("",)])
def test_without_a_run_folder_nothing_starts(
    cluster: dict[str, str], words: tuple[str, ...]
) -> None:
    assert submit(cluster, *words, STATE="done", CODE="0") == (2, 0)
    assert not Path(cluster["LOG"], "train").exists()


def test_slurm_is_asked_for_what_the_manual_says() -> None:
    text = SCRIPT.read_text()
    for line in ("--requeue", "--open-mode=append", "--signal=TERM@300"):
        assert f"#SBATCH {line}\n" in text  # no B: the signal is for the ranks
    assert subprocess.run(["bash", "-n", str(SCRIPT)], check=False).returncode == 0
