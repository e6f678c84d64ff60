"""`lit-restore status RUN`: how a run stands, and whether to start it again."""

from __future__ import annotations

import argparse

from lit_restore.errors import ExitCode, UserError
from lit_restore.io import fs
from lit_restore.io.requeue import should_requeue
from lit_restore.io.status import NAME, read_status

NO = 3
"""What `--should-requeue` returns for no; 0 is yes, all else an error."""


def register(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("run", metavar="RUN", help="the run folder")
    parser.add_argument(
        "--should-requeue",
        action="store_true",
        help=f"return 0 if the run should be started again, {NO} if not; a yes is counted, and "
        "after three of them without progress it is no",
    )


def run(args: argparse.Namespace) -> int:
    """Print one line; the exit code.

    Raises:
        UserError: there is no such run, or the count cannot be written.
    """
    if not fs.is_dir(args.run):
        raise UserError("no such run folder", where=args.run)
    if args.should_requeue:
        try:
            again, why = should_requeue(args.run)
        except OSError as error:
            raise UserError(f"cannot write ({error.strerror})", where=args.run) from None
        print(f"{'start again' if again else 'leave it'}: {why}")
        return ExitCode.OK if again else NO
    found = read_status(args.run)
    if found is None:
        raise UserError(f"holds no readable {NAME}", where=args.run)
    code = "" if found.code is None else f" (code {found.code})"
    parts = [f"{found.state}{code}", f"{found.samples_seen:,} samples"]
    parts += [part for part in (found.checkpoint, found.message) if part]
    print("; ".join(parts))
    return ExitCode.OK
