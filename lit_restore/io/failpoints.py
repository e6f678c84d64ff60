"""Places where a test makes the program fail: `hit("ckpt.rename")`.

The variable LIT_RESTORE_FAILPOINTS says which and how, clauses separated by `;`:

```
ckpt.rename=kill@3            the third time this process comes by, once
shard.read=eio@10x2           the tenth and the eleventh time
train.step=sleep:2.5x*        every time, 2.5 s each
train.loss_nan=nan@5 rank=1   only in the process of that rank
```
Unset, `hit` and `fires` do nothing and cost a call. They stay out of loops over pixels.
"""

from __future__ import annotations

import errno
import itertools
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NoReturn

from lit_restore.errors import UserError
from lit_restore.io.launch import launch_rank

VARIABLE = "LIT_RESTORE_FAILPOINTS"

POINTS: dict[str, str] = {
    "ckpt.write": "before a file of a draft is written",
    "ckpt.fsync": "a file of a draft is written, not yet flushed",
    "ckpt.manifest": "all files of a draft are durable, before its manifest",
    "ckpt.complete": "before COMPLETE is written",
    "ckpt.draft": "COMPLETE is durable, before the flush of the draft's names",
    "ckpt.rename": "before the draft gets its name; what had it is already aside",
    "ckpt.parent": "the final name is given, not yet flushed: not acknowledged",
    "ckpt.drop": "before a folder is renamed to be dropped",
    "ckpt.unlink": "the folder to drop has its trash name, before its files go",
    "train.step": "an optimiser step is done, before a save that is due",
    "train.loss_nan": "`fires`: the loss of this micro-batch becomes NaN",
    "val.batch": "before a batch is validated",
    "grid.draw": "before a sample grid is drawn",
    "record.append": "before a line is appended to a run's records",
    "shard.read": "before the bytes of a member are read",
    "data.decode": "before an image is decoded",
}
"""Every failpoint: its name and what has (not) happened when it is passed."""

_SIGNALS = {
    "kill": signal.SIGKILL,
    "stop": signal.SIGSTOP,
    "term": signal.SIGTERM,
    "usr1": signal.SIGUSR1,
    "int": signal.SIGINT,
}
_ERRNOS = {"eio": errno.EIO, "enospc": errno.ENOSPC}
ACTIONS = (*_SIGNALS, *_ERRNOS, "exit", "sleep", "raise", "nan")
"""`kill`, `stop`, `term`, `usr1`, `int` send this process that signal; `exit` leaves with code 1
and no clean-up; `sleep:SECONDS` (1 s) waits; `eio` and `enospc` raise `OSError`, `raise` a
`RuntimeError`; `nan` makes `fires` true."""

_CLAUSE = re.compile(
    r"(?P<name>[\w.]+)=(?P<action>[a-z]+?\d?)(?::(?P<seconds>\d+(?:\.\d+)?))?"
    r"(?:@(?P<first>\d+))?(?:\s*x(?P<times>\d+|\*))?(?:\s+rank=(?P<rank>\d+))?"
)


@dataclass
class _Clause:
    action: str
    seconds: float
    first: int
    times: float
    rank: int | None
    count: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def due(self) -> bool:
        """Count a passage of this process; whether it is one of those to act at."""
        # The rank is read anew: a forked one gets its number after this module was imported.
        if self.rank is not None and self.rank != launch_rank():
            return False
        return self.first <= next(self.count) < self.first + self.times


class _Armed:
    def __init__(self, text: str) -> None:
        self.clauses: dict[str, list[_Clause]] = {}
        for part in filter(None, (part.strip() for part in text.split(";"))):
            name, clause = _parse(part)
            self.clauses.setdefault(name, []).append(clause)

    def fires(self, name: str) -> bool:
        assert name in POINTS, f"failpoint {name} is not declared"
        due = [clause for clause in self.clauses.get(name, ()) if clause.due()]
        return [_act(clause, name) for clause in due].count(True) > 0

    def hit(self, name: str) -> None:
        self.fires(name)


def _hit_nothing(name: str) -> None:
    pass


def _fires_never(name: str) -> bool:
    return False


hit: Callable[[str], None] = _hit_nothing
"""Pass the failpoint `name`: whatever the variable asks for happens here. Call it through the
module (`failpoints.hit("ckpt.rename")`), with a literal name, so that `armed` and the test of the
registry see it."""
fires: Callable[[str], bool] = _fires_never
"""As `hit`; true if the caller shall spoil its value (action `nan`)."""


@contextmanager
def armed(text: str) -> Iterator[None]:
    """Act as if LIT_RESTORE_FAILPOINTS were `text`, for a while (tests within one process)."""
    global hit, fires
    before, spec = (hit, fires), _Armed(text)
    hit, fires = spec.hit, spec.fires
    try:
        yield
    finally:
        hit, fires = before


def _act(clause: _Clause, name: str) -> bool:
    action = clause.action
    if action in _ERRNOS:
        number = _ERRNOS[action]
        raise OSError(number, os.strerror(number), f"failpoint {name}")
    if action in _SIGNALS:
        os.kill(os.getpid(), _SIGNALS[action])
    elif action == "exit":
        os._exit(1)
    elif action == "sleep":
        time.sleep(clause.seconds)
    elif action == "raise":
        raise RuntimeError(f"failpoint {name}")
    return action == "nan"


def _parse(part: str) -> tuple[str, _Clause]:
    found = _CLAUSE.fullmatch(part)
    if found is None:
        _refuse(f'"{part}" is not name=action[:seconds][@first][xtimes] [rank=r]')
    name, action, times, rank = found["name"], found["action"], found["times"], found["rank"]
    if name not in POINTS:
        _refuse(f"no failpoint {name}; there are {', '.join(POINTS)}")
    if action not in ACTIONS:
        _refuse(f"no action {action}; there are {', '.join(ACTIONS)}")
    return name, _Clause(
        action=action,
        seconds=float(found["seconds"] or 1),
        first=int(found["first"] or 1),
        times=float("inf") if times == "*" else int(times or 1),
        rank=None if rank is None else int(rank),
    )


def _refuse(message: str) -> NoReturn:
    raise UserError(message, where=VARIABLE)


if _text := os.environ.get(VARIABLE, ""):
    _spec = _Armed(_text)
    hit, fires = _spec.hit, _spec.fires
    print(f"lit_restore: failpoints are active: {_text}", file=sys.stderr, flush=True)
