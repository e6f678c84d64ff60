"""The seam between `io.fs` and the operating system: every change of a disk, one method each."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class Disk:
    """The operations that change a disk, each one system call as far as a crash is concerned."""

    def create(self, path: Path) -> int:
        """Open a new file for writing; `FileExistsError` if there is one."""
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)

    def open_append(self, path: Path) -> int:
        """Open a file, made if need be, so that every write lands at its end."""
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)

    def write(self, fd: int, data: memoryview) -> None:
        """Write all of `data` (one dimension, bytes)."""
        while data:
            data = data[os.write(fd, data) :]

    def fsync(self, fd: int) -> None:
        """Return when the file's contents are on the medium."""
        os.fsync(fd)

    def close(self, fd: int) -> None:
        """Close what `create` or `open_append` opened."""
        os.close(fd)

    def rename(self, old: Path, new: Path) -> None:
        """Give `old` the name `new`, replacing a file (or an empty folder) of that name."""
        os.rename(old, new)

    def unlink(self, path: Path) -> None:
        """Remove one file."""
        os.unlink(path)

    def mkdir(self, path: Path) -> None:
        """Make one folder, whose parent exists."""
        os.mkdir(path)

    def rmdir(self, path: Path) -> None:
        """Remove one empty folder."""
        os.rmdir(path)

    def fsync_dir(self, path: Path) -> None:
        """Return when the names in a folder are on the medium."""
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        except OSError as error:
            # Some network file systems have no such call; their renames are synchronous.
            if error.errno not in (errno.EINVAL, errno.ENOTSUP):
                raise
        finally:
            os.close(fd)


_current = Disk()


def current() -> Disk:
    """The disk that all changes go through now."""
    return _current


@contextmanager
def using(disk: Disk) -> Iterator[None]:
    """Send every change of the disk, of every thread, through `disk` for a while (tests)."""
    global _current
    before, _current = _current, disk
    try:
        yield
    finally:
        _current = before
