"""Whether a run that ended should be started again, and how often that has been in vain."""

from __future__ import annotations

import json
import socket
from pathlib import Path

from lit_restore.errors import ExitCode, UserError
from lit_restore.io import fs, lock, procs
from lit_restore.io.status import read_status

NAME = "requeue.json"
IN_VAIN = 3
"""Starts without a sample more saved, after which a run is left alone."""
_AGAIN = (ExitCode.PREEMPTED, ExitCode.RANK_LOST)
_MAX_SIZE = 1 << 16


def should_requeue(run_dir: fs.StrPath) -> tuple[bool, str]:
    """Decide from STATUS.json; yes is counted in the run folder, so ask once each time.

    Yes for a run that was stopped by a signal or lost a rank or data worker, and for one that was
    killed before it could say so; no for all others, and after `IN_VAIN` times without progress.

    Returns:
        The decision, and the reason in words.

    Raises:
        OSError: the count cannot be written; without it there is no yes.
    """
    found = read_status(run_dir)
    if found is None:
        return False, "there is no readable STATUS.json"
    if found.state == "running":
        # A pid alone may belong to another process by now, in a container above all.
        alive = found.host == socket.gethostname() and procs.is_alive(found.pid)
        if alive and lock.is_held(run_dir):
            return False, f"it is running as pid {found.pid}"
        why = "it was killed"
    elif found.code in _AGAIN:
        why = found.message or found.state
    else:
        return False, found.message or found.state
    times = _times(run_dir, found.samples_seen)
    if times >= IN_VAIN:
        return False, f"started {times} times at {found.samples_seen} samples without progress"
    counted = {"samples_seen": found.samples_seen, "times": times + 1}
    fs.write_atomic(Path(run_dir, NAME), json.dumps(counted) + "\n")
    return True, why


def _times(run_dir: fs.StrPath, samples_seen: int) -> int:
    """How often the run was started again at this position."""
    try:
        found = json.loads(fs.read_bytes(Path(run_dir, NAME), limit=_MAX_SIZE))
        return int(found["times"]) if int(found["samples_seen"]) == samples_seen else 0
    except (UserError, ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return 0
