"""Which process of a run this is, before the processes have joined."""

from __future__ import annotations

import os


def launch_rank() -> int:
    """The rank of this process as its launcher (torchrun, SLURM, Lightning) says; 0 without one.

    Of Lightning's own launcher only whether it is rank 0 is sure where there are several nodes.
    """
    for name in ("RANK", "SLURM_PROCID"):
        if name in os.environ:
            return _number(name)
    return _number("NODE_RANK") + _number("LOCAL_RANK")


def _number(name: str) -> int:
    text = os.environ.get(name, "0")
    return int(text) if text.isdecimal() else 0
