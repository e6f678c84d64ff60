"""STATUS.json: what a run is doing, for scripts that start it again.

A launcher like torchrun returns 1 whatever its child returned; this file has the real code.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, get_args

from lit_restore.errors import ExitCode, UserError
from lit_restore.io import fs
from lit_restore.io.redact import redact

NAME = "STATUS.json"
State = Literal["running", "done", "preempted", "failed", "interrupted"]
_MAX_STATUS = 1 << 20


@dataclass(frozen=True)
class Status:
    """The content of STATUS.json."""

    state: State
    """`running` in the file of a process that is gone means that it was killed (memory?)."""
    code: int | None
    """Exit code (`errors.ExitCode`), None while running."""
    samples_seen: int
    checkpoint: str | None
    """Name of the newest acknowledged checkpoint folder."""
    message: str
    """The error line, or empty."""
    host: str
    pid: int
    time: float
    """When this was written, in seconds since 1970."""


def write_status(
    run_dir: fs.StrPath,
    *,
    state: State,
    code: int | None,
    samples_seen: int,
    checkpoint: str | None,
    message: str,
) -> bool:
    """Replace STATUS.json, atomically.

    Returns:
        Whether it is written: a full disk must not end a run that could go on without it.
    """
    status = Status(
        state=state,
        code=code,
        samples_seen=samples_seen,
        checkpoint=checkpoint,
        message=message,
        host=socket.gethostname(),
        pid=os.getpid(),
        time=time.time(),
    )
    try:
        fs.write_atomic(Path(run_dir, NAME), json.dumps(asdict(status), indent=1) + "\n")
    except OSError:
        return False
    return True


_STATES: dict[int, State] = {
    ExitCode.OK: "done",
    ExitCode.PREEMPTED: "preempted",
    ExitCode.INTERRUPTED: "interrupted",
}


def write_end(run_dir: fs.StrPath, code: int, message: str) -> None:
    """Say how a run ended; its position stays as it was last written.

    Nothing where the run folder was never made, or where the command was refused before it began:
    that says nothing about the run in the folder.
    """
    if not fs.is_dir(run_dir):
        if code != ExitCode.PREEMPTED:
            return
        with contextlib.suppress(OSError):  # to be started again, however early it was stopped
            fs.make_dir(run_dir)
    before = read_status(run_dir)
    if code == ExitCode.INPUT and before is not None and before.pid != os.getpid():
        return
    write_status(
        run_dir,
        state=_STATES.get(code, "failed"),
        code=int(code),
        samples_seen=before.samples_seen if before else 0,
        checkpoint=before.checkpoint if before else None,
        message=redact(" ".join(message.split())),
    )


def read_status(run_dir: fs.StrPath) -> Status | None:
    """What STATUS.json says; None if there is none or it makes no sense."""
    try:
        found = json.loads(fs.read_bytes(Path(run_dir, NAME), limit=_MAX_STATUS))
        code, checkpoint = found["code"], found["checkpoint"]
        status = Status(
            state=found["state"],
            code=None if code is None else int(code),
            samples_seen=int(found["samples_seen"]),
            checkpoint=None if checkpoint is None else str(checkpoint),
            message=str(found["message"]),
            host=str(found["host"]),
            pid=int(found["pid"]),
            time=float(found["time"]),
        )
    except (UserError, ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return None
    return status if status.state in get_args(State) else None
