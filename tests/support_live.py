"""Ranks that are watched while they run, and proof that they left nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from support_fork import _free_port, fork, wait_all

from lit_restore.io import failpoints

SLACK = 3
"""Bounds on the time to leave are asserted with so much room on a busy machine."""


class Ranks:
    """`train.py` on forked ranks, each a group of its own with its data workers."""

    def __init__(
        self, argv: list[str], world: int, failpoint: str, log: Path, *, to_group: bool = False
    ) -> None:
        self.log, self.world = log, world
        port = str(_free_port())
        self.pids: list[int] = []
        if world > 1:
            if not any(word.startswith("--trainer.strategy") for word in argv):
                argv = [*argv, "--trainer.strategy=ddp"]
            argv = [*argv, f"--trainer.devices={world}"]
        for rank in range(world):
            env = {
                "TORCHELASTIC_RUN_ID": "test", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
                "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world), "RANK": str(rank),
                "LOCAL_RANK": str(rank), "GROUP_RANK": "0",
            }  # fmt: skip

            def one() -> int:
                from lit_restore.cli.train import main

                if to_group:
                    _signals_reach_the_group()
                with failpoints.armed(failpoint):
                    return main(argv)

            output = log.with_name(f"{log.name}.{rank}")
            self.pids.append(fork(one, env=env if world > 1 else {}, output=output))

    def wait(self, seconds: float = 120) -> list[int]:
        """Exit codes."""
        return wait_all(self.pids, seconds)

    def text(self, rank: int = 0) -> str:
        """What a rank printed."""
        return self.log.with_name(f"{self.log.name}.{rank}").read_text().replace("\0", "")

    def errors(self, rank: int = 0) -> list[str]:
        """The error lines of a rank."""
        return [line for line in self.text(rank).splitlines() if line.startswith("error: ")]

    def signal(self, rank: int, number: int = signal.SIGTERM) -> None:
        """Send a rank, and no data worker of it, a signal."""
        os.kill(self.pids[rank], number)

    def members(self, rank: int) -> list[int]:
        """Living processes of a rank's group: itself and its data workers."""
        return group(self.pids[rank])


@contextmanager
def ranks(
    recipe: Path,
    run_dir: Path,
    *options: str,
    log: Path,
    world: int = 1,
    failpoint: str = "",
    to_group: bool = False,
) -> Iterator[Ranks]:
    """Start the ranks; at the end none of their groups may have a process left."""
    argv = ["fit", "-c", str(recipe), "--run_dir", str(run_dir), *options]
    started = Ranks(argv, world, failpoint, log, to_group=to_group)
    try:
        yield started
        until(lambda: not any(group(pid) for pid in started.pids), 10)
    finally:
        for pid in started.pids:
            if group(pid):
                os.killpg(pid, signal.SIGKILL)


def _signals_reach_the_group() -> None:
    """What this process sends itself, its data workers get too: as a terminal sends it."""
    to_one = os.kill

    def kill(pid: int, number: int) -> None:
        if pid == os.getpid():
            # By another process: a worker takes its parent's SIGTERM for the end of the loader.
            subprocess.run(["kill", f"-{int(number)}", "--", f"-{os.getpgid(0)}"], check=False)
        else:
            to_one(pid, number)

    os.kill = kill


def until(test: Callable[[], object], seconds: float = 60) -> None:
    """Wait for something that must come true."""
    deadline = time.monotonic() + seconds
    while not test():
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.02)


def group(leader: int) -> list[int]:
    """The living processes of a process group."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if int(fields[2]) == leader and fields[0] not in "ZX":
                found.append(int(entry.name))
    return found
