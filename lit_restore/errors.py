"""The few exceptions a user can meet, and the exit codes of every command.

Each message is one line that names the file or key and says how to mend it.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum
from os import PathLike


class ExitCode(IntEnum):
    """What a process of ours tells its parent."""

    OK = 0
    """The work is done."""
    BUG = 1
    """A fault of ours; the traceback is kept."""
    INPUT = 2
    """The input is wrong; the line says how to mend it."""
    SOME_FAILED = 3
    """`evaluate`: some images failed, the rest are in the table."""
    CANNOT_SAVE = 74
    """No checkpoint could be written (three times in a row, or at preemption)."""
    PREEMPTED = 75
    """Stopped by a signal, saved, to be started again."""
    TRAINING_FAULT = 76
    """The training itself broke: non-finite losses."""
    RANK_LOST = 77
    """Another rank or a worker died; to be started again."""
    INTERRUPTED = 130
    """Ctrl-C."""


class LitRestoreError(Exception):
    """Base of all errors that end a command with one line instead of a traceback."""

    code: ExitCode = ExitCode.BUG


class UserError(LitRestoreError, ValueError):
    """Something the user gave is wrong.

    Args:
        message: what is wrong and the mend, one line, no trailing full stop.
        where: the file or the dotted key that is wrong; printed first.
    """

    code = ExitCode.INPUT

    def __init__(self, message: str, *, where: str | PathLike[str] | None = None) -> None:
        self.message = message
        self.where = None if where is None else str(where)
        super().__init__(message if self.where is None else f"{self.where}: {message}")


def require_at_least(least: float, **values: float | None) -> None:
    """Refuse numbers below `least`; None passes.

    Args:
        least: the smallest number allowed.
        **values: option → number; a double underscore in an option's name stands for a dot.

    Raises:
        UserError: names the first option that is too small.
    """
    for name, value in values.items():
        if value is not None and not value >= least:
            what = f"is below {least}" if value < least else "is no number"
            raise UserError(f"{value} {what}", where=name.replace("__", "."))


class SaveError(LitRestoreError):
    """A checkpoint could not be written."""

    code = ExitCode.CANNOT_SAVE


class Preempted(LitRestoreError):
    """A signal asked the run to stop, and its state is saved."""

    code = ExitCode.PREEMPTED


class Interrupted(LitRestoreError):
    """Ctrl-C asked the run to stop, and its state is saved."""

    code = ExitCode.INTERRUPTED


class TrainingFault(LitRestoreError):
    """The loss or the gradient stopped being finite."""

    code = ExitCode.TRAINING_FAULT


class RankLost(LitRestoreError):
    """Another process of the run, or a data worker, died."""

    code = ExitCode.RANK_LOST


def require_choice(value: str, choices: Iterable[str], *, where: str) -> str:
    """`value`, if it is one of `choices`.

    Args:
        value: what the user gave.
        choices: the names there are.
        where: the option's name.

    Raises:
        UserError: it is none of them; the line lists them.
    """
    known = list(choices)
    if value not in known:
        raise UserError(f"{value!r} is not one of {', '.join(known)}", where=where)
    return value
