"""One process per run folder: an advisory lock that ends with its holder, however that ends."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import warnings
import weakref
from pathlib import Path
from typing import BinaryIO

from lit_restore.errors import UserError
from lit_restore.io import fs

NAME = "run.lock"
_held: weakref.WeakSet[RunLock] = weakref.WeakSet()


class RunLock:
    """Holds `run_dir` for this process until `release`, the end of a `with`, or its death.

    The kernel frees the lock (flock) when the last descriptor of it is closed; so forked children
    close theirs at once, or a data worker that outlives the trainer would keep the folder locked.
    The file stays: removing it would let two processes hold locks on two files of one name.
    Where a file system has no locks there is a warning, and no protection.

    Args:
        run_dir: made if need be.

    Raises:
        UserError: "in use by pid 4242 on node7"; or the folder cannot be written.
    """

    def __init__(self, run_dir: fs.StrPath) -> None:
        self.path = Path(run_dir, NAME)
        self._file: BinaryIO | None = self._open()
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _describe(self._file)
            self.release()
            raise UserError(f"in use by {holder}", where=run_dir) from None
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EINVAL):
                self.release()
                raise
            warnings.warn(f"{self.path}: cannot be locked ({error.strerror})", stacklevel=2)
        _held.add(self)
        self._sign()

    def _open(self) -> BinaryIO:
        try:
            fs.make_dir(self.path.parent)
            return open(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666), "r+b", buffering=0)
        except OSError as error:
            reason = f"cannot write ({error.strerror})"
            raise UserError(reason, where=self.path.parent) from None

    def _sign(self) -> None:
        assert self._file is not None
        body = {"host": socket.gethostname(), "pid": os.getpid(), "boot": _boot_id()}
        try:
            self._file.truncate(0)
            self._file.write(json.dumps(body).encode() + b"\n")
        except OSError:
            pass  # a full disk: locked all the same, only without a name

    def release(self) -> None:
        """Let others have the folder. Twice does no harm."""
        file, self._file = self._file, None
        _held.discard(self)
        if file is not None:
            file.close()

    def __enter__(self) -> RunLock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def is_held(run_dir: fs.StrPath) -> bool:
    """Whether some process, on this machine or where locks reach, holds a run's lock."""
    try:
        fd = os.open(Path(run_dir, NAME), os.O_RDWR)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # no locks here
        return False
    finally:
        os.close(fd)
    return False


def _describe(file: BinaryIO) -> str:
    try:
        body = json.loads(file.read(4096))
        return f"pid {int(body['pid'])} on {body['host']}"
    except (OSError, ValueError, TypeError, KeyError):
        return "another process"


def _boot_id() -> str:
    try:
        return fs.read_text("/proc/sys/kernel/random/boot_id").strip()
    except UserError:
        return ""


def _close_in_child() -> None:
    for lock in list(_held):
        lock.release()


os.register_at_fork(after_in_child=_close_in_child)
