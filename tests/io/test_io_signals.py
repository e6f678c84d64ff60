"""Signals ask for a stop; a second Ctrl-C forces it; data workers leave with their trainer.

Each test runs a process of its own: handlers belong to a whole process. They wait for a line of
the other side instead of an amount of time, except where nothing must happen.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest

PRELUDE = """
import os, signal, sys, threading, time
from lit_restore.io import signals

def say(*words):
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())

def wait_for(test, seconds=20):
    end = time.monotonic() + seconds
    while not test() and time.monotonic() < end:
        time.sleep(0.01)
    return test()
"""


@pytest.fixture
def start() -> Iterator[Callable[[str], subprocess.Popen[str]]]:
    """`start(code)` → a process, leader of its own group, that runs `code` after the prelude."""
    started: list[subprocess.Popen[str]] = []

    def run(code: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", PRELUDE + code],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield run
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def line(process: subprocess.Popen[str]) -> str:
    return process.stdout.readline().strip()


TRAIN = """
signals.install(); signals.install()
say("ready", signals.requested())
wait_for(signals.requested)
say("flag", signals.requested())
time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_sets_the_flag_and_the_process_goes_on(start, number):
    process = start(TRAIN)
    assert line(process) == "ready None"
    process.send_signal(number)
    assert line(process) == f"flag {int(number)}"
    assert process.poll() is None


def test_without_install_the_same_signal_ends_the_process(start):
    """The negative control: SIGUSR1's default action."""
    process = start(TRAIN.replace("signals.install()", "pass"))
    line(process)
    process.send_signal(signal.SIGUSR1)
    assert process.wait(timeout=20) == -signal.SIGUSR1


def test_repeated_signals_are_told_once_and_the_first_is_the_one_reported(start):
    process = start(TRAIN + "say('end', signals.requested())\n")
    line(process)
    process.send_signal(signal.SIGTERM)
    assert line(process) == "flag 15"
    for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        process.send_signal(number)
        time.sleep(0.05)
    assert process.poll() is None  # one Ctrl-C asks, whatever came before it
    process.kill()
    told = process.stderr.read()
    assert [told.count(name) for name in ("SIGTERM", "SIGUSR1", "SIGINT")] == [1, 1, 1]


def test_the_second_ctrl_c_leaves_at_once(start):
    process = start(TRAIN)
    line(process)
    process.send_signal(signal.SIGINT)
    assert line(process) == "flag 2"
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=20) == 130
    assert "SIGINT: saving" in process.stderr.read()


def test_the_second_ctrl_c_works_during_a_long_call_of_c(start):
    """No handler in Python can run before the call returns, which here takes minutes."""
    process = start("""
signals.install()
import hashlib
say("ready")
hashlib.pbkdf2_hmac("sha256", b"a", b"b", 1_000_000_000)
""")
    line(process)
    for _ in range(2):
        time.sleep(0.2)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
    assert process.wait(timeout=20) == 130


def test_reset_forgets_the_flag_and_the_first_ctrl_c(start):
    process = start("""
signals.install()
for _ in range(3):
    say("ready", signals.requested())
    wait_for(signals.requested)
    signals.reset()
say("alive")
""")
    for _ in range(3):
        assert line(process) == "ready None"
        process.send_signal(signal.SIGINT)
    assert line(process) == "alive"
    assert process.wait(timeout=20) == 0


def test_reinstall_takes_the_signals_back_and_says_whether_it_had_to(start):
    process = start("""
signals.install()
say(signals.reinstall())
signal.signal(signal.SIGTERM, signal.SIG_DFL)
say(signals.reinstall())
os.kill(os.getpid(), signal.SIGTERM)
say(signals.requested())
""")
    assert [line(process) for _ in range(3)] == ["False", "True", "15"]


FORKED = """
signals.install()
children = []
for _ in range(2):
    pid = os.fork()
    if pid == 0:
        {first}
        say("child", os.getpid())
        wait_for(signals.requested, 60)
        say("asked")
        time.sleep(60)
    children.append(pid)
wait_for(signals.requested)
say("flag")
time.sleep(60)
"""


def test_one_ctrl_c_to_the_group_counts_once_though_children_share_the_program(start):
    """A child that wrote its signals to the parent's pipe would make the first one the second."""
    process = start(FORKED.format(first="pass"))
    assert {line(process).split()[0] for _ in range(2)} == {"child"}
    os.killpg(process.pid, signal.SIGINT)
    assert sorted(line(process) for _ in range(3)) == ["asked", "asked", "flag"]
    time.sleep(0.2)
    assert process.poll() is None


def test_a_child_with_install_of_its_own_has_a_second_ctrl_c_too(start):
    process = start(FORKED.format(first="signals.install()"))
    pids = [int(line(process).split()[1]) for _ in range(2)]
    os.kill(pids[0], signal.SIGINT)
    assert line(process) == "asked"
    os.kill(pids[0], signal.SIGINT)
    wait(lambda: gone(pids[0]))
    assert not gone(pids[1])
    assert process.poll() is None


# Data workers -------------------------------------------------------------------------------------

WORKER = """
signals.install()
signals.GRACE = {grace}
worker = os.fork()
if worker == 0:
    for number in signals.STOPPING:  # what a library may have done
        signal.signal(number, signal.SIG_DFL)
    signals.worker_signals()
    say("worker", os.getpid())
    time.sleep(60)
    os._exit(3)
wait_for(signals.requested)
say("flag")
{then}
"""
REAP = "say(os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1]))"


def gone(pid: int) -> bool:
    """No such process, or one that only waits to be reaped."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def wait(test: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not test() and time.monotonic() < end:
        time.sleep(0.02)
    assert test()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGUSR1, signal.SIGTERM])
def test_a_worker_outlives_a_signal_to_the_group(start, number):
    process = start(WORKER.format(grace=30, then="time.sleep(60)"))
    worker = int(line(process).split()[1])
    os.killpg(process.pid, number)
    assert line(process) == "flag"
    time.sleep(0.3)
    assert not gone(worker)


def test_a_worker_leaves_some_time_after_a_sigterm_to_the_group(start):
    process = start(WORKER.format(grace=0.5, then=REAP))
    line(process)
    os.killpg(process.pid, signal.SIGTERM)
    assert line(process) == "flag"
    assert line(process) == "143"


def test_a_worker_leaves_at_once_when_its_trainer_says_so(start):
    then = "os.kill(worker, signal.SIGTERM);" + REAP
    process = start(WORKER.format(grace=1e9, then=then))
    line(process)
    process.send_signal(signal.SIGUSR1)
    assert [line(process), line(process)] == ["flag", "0"]


def test_a_worker_leaves_with_its_trainer_however_that_ends(start):
    process = start(WORKER.format(grace=1e9, then="time.sleep(60)"))
    worker = int(line(process).split()[1])
    process.kill()
    wait(lambda: gone(worker))


def test_a_plain_worker_would_stay(start):
    """The negative control of the test above."""
    code = WORKER.format(grace=1e9, then="time.sleep(60)")
    process = start(code.replace("signals.worker_signals()", "pass"))
    worker = int(line(process).split()[1])
    process.kill()
    process.wait()
    time.sleep(1.5)
    assert not gone(worker)
