"""Forked processes for tests: a tenth of a second where a new interpreter takes six."""

from __future__ import annotations

import faulthandler
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

_LONG = 60
"""Seconds after which a child says where it is: no test lets one run so long."""


def fork(function: Callable[[], int], *, env: Mapping[str, str], output: Path | None) -> int:
    """Run `function` in a child; its pid. The child exits with what the function returns."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return pid
    # First of all: a forked child of a process that ran two OpenMP threads hangs otherwise.
    torch.set_num_threads(1)
    code = 1
    try:
        os.setpgid(0, 0)
        os.environ.update(env)
        if output is not None:
            target = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            os.dup2(target, 1)
            os.dup2(target, 2)
            # pytest replaced the streams by its own, which do not write to 1 and 2.
            sys.stdout = open(1, "w", buffering=1, closefd=False)  # noqa: SIM115
            sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
            faulthandler.dump_traceback_later(_LONG, file=2)
        code = function()
    except SystemExit as leaving:
        code = int(leaving.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def wait_all(pids: list[int], seconds: float) -> list[int]:
    """Exit codes (minus the signal where one ended it); kills what is left at the deadline."""
    deadline = time.monotonic() + seconds
    codes: dict[int, int] = {}
    while len(codes) < len(pids):
        for pid in pids:
            if pid in codes:
                continue
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                codes[pid] = os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            for pid in pids:
                if pid not in codes:
                    os.killpg(pid, signal.SIGKILL)
                    os.waitpid(pid, 0)
                    codes[pid] = -9999
        time.sleep(0.01)
    return [codes[pid] for pid in pids]


def run_ranks(
    function: Callable[[int], int],
    world: int,
    *,
    env: Mapping[str, str] | None = None,
    output: Path | None = None,
    seconds: float = 120,
) -> list[int]:
    """Run `function(rank)` on `world` forked ranks as torchrun would start them; exit codes."""
    pids = []
    port = str(_free_port())
    for rank in range(world):
        variables = dict(env or {})
        if world > 1:
            variables |= {
                "TORCHELASTIC_RUN_ID": "test",
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
                "WORLD_SIZE": str(world),
                "LOCAL_WORLD_SIZE": str(world),
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "GROUP_RANK": "0",
            }
        log = None if output is None else output.with_name(f"{output.name}.{rank}")
        pids.append(fork(lambda r=rank: function(r), env=variables, output=log))
    return wait_all(pids, seconds)


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])
