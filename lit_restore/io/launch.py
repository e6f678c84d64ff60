"""Which process of a run this is, before the processes have joined."""

from __future__ import annotations

import json
import os
from dataclasses import asdict

from lit_restore.io.procs import Process

PARENT = "LIT_RESTORE_PARENT"
"""Names rank 0 to the ranks that it starts itself."""


def launch_rank() -> int:
    """The rank of this process as its launcher (torchrun, SLURM, Lightning) says; 0 without one.

    Of Lightning's own launcher only whether it is rank 0 is sure where there are several nodes.
    """
    if "RANK" in os.environ:
        return _number("RANK")
    # A rank that another one started: in an interactive job all of them have the shell's number.
    if "SLURM_PROCID" in os.environ and PARENT not in os.environ:
        return _number("SLURM_PROCID")
    return _number("NODE_RANK") + _number("LOCAL_RANK")


def name_parent(process: Process) -> None:
    """Tell processes that are started from now on who starts them."""
    os.environ[PARENT] = json.dumps(asdict(process))


def parent() -> Process | None:
    """The rank that started this process, if one did."""
    try:
        return Process(**json.loads(os.environ.get(PARENT, "")))
    except (ValueError, TypeError):
        return None


def _number(name: str) -> int:
    text = os.environ.get(name, "0")
    return int(text) if text.isdecimal() else 0
