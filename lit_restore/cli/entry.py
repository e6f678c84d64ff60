"""How every command starts and ends: one error line, the right exit code, no traceback."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn

from lit_restore.errors import ExitCode, LitRestoreError, UserError
from lit_restore.io.redact import redact


def guarded(command: Callable[[], int]) -> int:
    """Run `command` and turn what it raises into an exit code and one line on stderr.

    Args:
        command: returns an exit code.

    Returns:
        The exit code: the command's own, or that of the `LitRestoreError` it raised, 130 for
        Ctrl-C, 1 with the traceback for anything else (a bug of ours).
    """
    try:
        return int(command())
    except LitRestoreError as error:
        print(f"error: {_one_line(error)}", file=sys.stderr)
        return int(error.code)
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        return int(ExitCode.INTERRUPTED)
    except BrokenPipeError:
        # `… | head` closed the pipe; silence the interpreter's own complaint at exit too.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return int(ExitCode.OK)
    except Exception:
        traceback.print_exc()
        return int(ExitCode.BUG)


class OneLineArguments(argparse.ArgumentParser):
    """Argparse whose errors are one line, like all others."""

    def error(self, message: str) -> NoReturn:
        """Raise the message as the user's error."""
        raise UserError(f"{message}; see {self.prog} --help")


def _one_line(error: Exception) -> str:
    return redact(" ".join(str(error).split()))
