"""Two runs never share a folder, and a dead one never keeps it."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from lit_restore.errors import UserError
from lit_restore.io.lock import RunLock, is_held

HOLD = """
import os, sys, time
from lit_restore.io.lock import RunLock
lock = RunLock(sys.argv[1])
if sys.argv[2] == "fork":
    child = os.fork()
    os.write(1, f"{child or os.getpid()}\\n".encode())  # at once: print writes in pieces
os.write(1, b"held\\n")
time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """`holder(mode)` → a process that holds the lock of `tmp_path / "run"`."""
    started: list[subprocess.Popen[str]] = []

    def start(mode: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(tmp_path / "run"), mode],
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()


def test_a_second_run_is_told_who_has_the_folder(tmp_path, holder):
    process = holder("alone")
    assert process.stdout.readline() == "held\n"
    with pytest.raises(UserError) as info:
        RunLock(tmp_path / "run")
    host = socket.gethostname()
    assert str(info.value) == f"{tmp_path / 'run'}: in use by pid {process.pid} on {host}"


def test_a_killed_holder_frees_the_folder_though_its_child_lives(tmp_path, holder):
    process = holder("fork")
    child = int(process.stdout.readline())
    assert {process.stdout.readline() for _ in range(2)} >= {"held\n"}
    process.kill()
    process.wait()
    os.kill(child, 0)  # still there
    RunLock(tmp_path / "run").release()


def test_a_child_that_kept_the_descriptor_would_keep_the_folder(tmp_path):
    """The negative control of the test above: what flock does by itself."""
    file = os.open(tmp_path / "run.lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    copy = os.dup(file)  # what a fork does
    os.close(file)
    with pytest.raises(UserError, match="in use by another process"):
        RunLock(tmp_path)
    os.close(copy)
    RunLock(tmp_path).release()


def test_one_process_cannot_hold_a_folder_twice_and_can_give_it_back(tmp_path):
    with RunLock(tmp_path) as lock:
        with pytest.raises(UserError, match=f"in use by pid {os.getpid()} on"):
            RunLock(tmp_path)
        with RunLock(tmp_path / "other"):
            pass
    lock.release()
    with RunLock(tmp_path):
        pass


def test_a_child_that_releases_does_not_free_its_parent_s_lock(tmp_path):
    with RunLock(tmp_path) as lock:
        pid = os.fork()
        if pid == 0:
            lock.release()
            os._exit(0)
        os.waitpid(pid, 0)
        with pytest.raises(UserError, match="in use"):
            RunLock(tmp_path)


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot write \(Not a directory\)"):
        RunLock(tmp_path / "file")


def test_a_file_system_without_locks_warns_and_goes_on(tmp_path, monkeypatch):
    def refuse(file: object, flags: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.warns(UserWarning, match="cannot be locked"), RunLock(tmp_path):
        pass


def test_the_body_names_host_pid_and_boot(tmp_path):
    with RunLock(tmp_path):
        text = Path(tmp_path, "run.lock").read_text()
    for part in (str(os.getpid()), socket.gethostname(), '"boot"'):
        assert part in text


def test_whether_a_run_is_held_can_be_asked(tmp_path: Path) -> None:
    assert not is_held(tmp_path)
    with RunLock(tmp_path):
        assert is_held(tmp_path)
    assert not is_held(tmp_path)
