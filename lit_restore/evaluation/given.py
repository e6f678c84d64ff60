"""What was typed, checked before any work: paths, colours, a place for the results."""

from __future__ import annotations

import argparse
import errno
import sys
from pathlib import Path

from lit_restore.errors import LitRestoreError, SaveError, UserError
from lit_restore.io import fs

# The place was badly chosen; anything else (a full, read-only or broken disk) is the disk's fault.
_BAD_PLACE = frozenset(
    {
        errno.EACCES,
        errno.EPERM,
        errno.ENOENT,
        errno.EEXIST,
        errno.ENOTDIR,
        errno.EISDIR,
        errno.ENAMETOOLONG,
        errno.ELOOP,
        errno.EINVAL,
    }
)


def text(word: str) -> str:
    """An argument that says something: for argparse's `type`.

    Raises:
        argparse.ArgumentTypeError: it is empty. An empty path would be the current folder.
    """
    if not word.strip():
        raise argparse.ArgumentTypeError("is empty; was a variable of the shell not set?")
    return word


def names(word: str) -> tuple[str, ...]:
    """An argument that is a list, `a,b`."""
    return tuple(part.strip() for part in word.split(",") if part.strip())


def path(word: str) -> Path:
    """A path that is not empty, with ``~`` for the home (no shell expands ``--out=~/x``)."""
    given = Path(text(word))
    try:
        return given.expanduser()
    except RuntimeError:  # ~nobody: a name like any other
        return given


def check_background(colour: str | None) -> None:
    """Refuse what is no colour before the first transparent picture needs it.

    Raises:
        UserError: names the option.
    """
    from lit_restore.io.images import parse_colour

    if colour is not None:
        parse_colour(colour, where="--background")


def check_pictures(count: int) -> None:
    """Refuse to draw less than no pictures.

    Raises:
        UserError: names the option.
    """
    if count < 0:
        raise UserError("is below 0; 0 draws none", where=f"--pictures {count}")


def check_out(out: Path) -> None:
    """Refuse a place for results where no folder can be.

    Raises:
        UserError: it, or a part of its path, is a file.
    """
    place = next((p for p in (out, *out.parents) if fs.exists(p)), None)
    if place is not None and not fs.is_dir(place):
        raise UserError("is a file; --out names a folder", where=place)


def cannot_write(where: Path | str, error: OSError) -> LitRestoreError:
    """What a refused write is to the user: a place badly chosen, or a disk that takes no more."""
    reason = f"cannot write ({error.strerror or error})"
    if error.errno in _BAD_PLACE:
        return UserError(f"{reason}; choose a place of yours with --out", where=where)
    return SaveError(f"{where}: {reason}; free some space, or choose another --out")


def with_mend(error: UserError, mend: str) -> UserError:
    """The same line with a mend, unless it has one (they stand behind a semicolon)."""
    if ";" in error.message:
        return error
    return UserError(f"{error.message}; {mend}", where=error.where)


def print_any_name() -> None:
    """Let names that the terminal cannot show be printed escaped instead of ending the command."""
    reconfigure = getattr(sys.stdout, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="backslashreplace")
