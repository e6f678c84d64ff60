"""What is started again by itself, and that this comes to an end."""

from __future__ import annotations

import os
import socket
import time
from dataclasses import asdict
from pathlib import Path

import pytest

from lit_restore.io import procs, status
from lit_restore.io.lock import RunLock
from lit_restore.io.requeue import IN_VAIN, should_requeue


def write(run: Path, code: int | None, samples_seen: int = 8) -> None:
    run.mkdir(exist_ok=True)
    status.write_status(
        run, state="running", code=None, samples_seen=samples_seen, checkpoint=None, message=""
    )
    if code is not None:
        status.write_end(run, code, "why")


@pytest.mark.parametrize(
    ("code", "again"),
    [(0, False), (1, False), (2, False), (74, False), (75, True), (76, False), (77, True),
     (130, False)],
)  # fmt: skip
def test_stopped_and_lost_runs_are_started_again_and_no_others(
    tmp_path: Path, code: int, again: bool
) -> None:
    write(tmp_path / "run", code)
    assert should_requeue(tmp_path / "run")[0] is again


def test_a_run_that_was_killed_is_started_again_and_a_living_one_is_not(tmp_path: Path) -> None:
    write(tmp_path, None)
    with RunLock(tmp_path):
        assert should_requeue(tmp_path) == (False, f"it is running as pid {os.getpid()}")
    # Its pid lives, but as another process: without the run's lock.
    assert should_requeue(tmp_path)[0]
    pid = os.fork()
    if pid == 0:
        write(tmp_path, None)
        os._exit(0)
    os.waitpid(pid, 0)
    assert should_requeue(tmp_path) == (True, "it was killed")


def test_three_starts_without_progress_are_enough(tmp_path: Path) -> None:
    for _ in range(2):
        for position in (8, 16):
            write(tmp_path, 77, position)
            assert [should_requeue(tmp_path)[0] for _ in range(IN_VAIN)] == [True] * IN_VAIN
            again, why = should_requeue(tmp_path)
            assert not again
            assert "without progress" in why


def test_progress_starts_the_count_anew(tmp_path: Path) -> None:
    for position in range(0, 80, 8):
        write(tmp_path, 75, position)
        assert should_requeue(tmp_path)[0]


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"samples_seen": "x", "times": 1}', "nul"])
def test_a_damaged_count_counts_as_none(tmp_path: Path, content: str) -> None:
    write(tmp_path, 75)
    (tmp_path / "requeue.json").write_text(content)
    assert should_requeue(tmp_path)[0]


def test_no_status_is_no_reason(tmp_path: Path) -> None:
    assert should_requeue(tmp_path) == (False, "there is no readable STATUS.json")


# Processes ----------------------------------------------------------------------------------------


def test_a_process_is_alive_then_stopped_then_gone() -> None:
    import signal

    assert procs.state_of(procs.this_process()) == "alive"
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(write, b".")
        signal.pause()
        os._exit(0)
    os.read(read, 1)
    child = procs.Process(**{**asdict(procs.this_process()), "pid": pid, "born": procs._born(pid)})
    assert procs.state_of(child) == "alive"
    os.kill(pid, signal.SIGSTOP)
    os.waitpid(pid, os.WUNTRACED)
    assert procs.state_of(child) == "stopped"
    os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + 20
    while procs.state_of(child) != "gone" and time.monotonic() < deadline:
        time.sleep(0.01)
    assert procs.state_of(child) == "gone"  # not reaped yet
    os.waitpid(pid, 0)
    assert procs.state_of(child) == "gone"
    assert not procs.is_alive(pid)


def test_another_process_of_the_same_number_or_machine_is_not_taken_for_it() -> None:
    me = asdict(procs.this_process())
    assert me["host"] == socket.gethostname()
    assert procs.state_of(procs.Process(**{**me, "born": me["born"] + 1})) == "gone"
    assert procs.state_of(procs.Process(**{**me, "space": "elsewhere"})) is None
