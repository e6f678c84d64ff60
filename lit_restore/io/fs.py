"""The only place that touches the disk: reading what a user named, writing so that it survives.

Every operation that changes the disk goes through one `Disk` object. `fs.using(disk)` replaces it,
so that a test can record the sequence, fail the k-th call or stop there (reliability §2.1, §3).

Reading: what is missing or unreadable is a `UserError` that names the file.
Writing: an `OSError` goes to the caller, who knows whether the run can go on without the file.
"""

from __future__ import annotations

import contextlib
import difflib
import errno
import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import IO, BinaryIO

from lit_restore.errors import UserError
from lit_restore.io.disk import Disk as Disk
from lit_restore.io.disk import current
from lit_restore.io.disk import using as using
from lit_restore.io.wording import human_size

StrPath = str | os.PathLike[str]
Bytes = bytes | bytearray | memoryview

TEMPORARY = "tmp-"
"""Names that start so are drafts: never read, swept when the owner of the folder starts again."""
_FEW = 1000
_BLOCK = 4 << 20


# Reading ------------------------------------------------------------------------------------------


def open_read(path: StrPath) -> BinaryIO:
    """Open a regular file for reading; its `name` is `path`.

    Raises:
        UserError: if it is missing, a folder, a pipe or a device, or may not be read.
    """
    with _reading(path):
        # Without O_NONBLOCK a named pipe given as a file would wait for a writer for ever.
        file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))  # noqa: SIM115
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise UserError("is not a regular file", where=path)
    return file


def pread(file: BinaryIO, size: int, offset: int) -> bytes:
    """Exactly `size` bytes at byte `offset` of an open file, without moving its position.

    Raises:
        UserError: if the file ends earlier ("ends at byte ...") or cannot be read.
    """
    parts: list[bytes] = []
    missing = size
    while missing:
        with _reading(file.name):
            part = os.pread(file.fileno(), missing, offset + size - missing)
        if not part:
            raise UserError(f"ends at byte {_file_size(file)}", where=file.name)
        parts.append(part)
        missing -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def read_bytes(path: StrPath, *, limit: int | None = None) -> bytes:
    """The whole content of a file.

    Args:
        path: a regular file.
        limit: the most bytes accepted; the size is checked before anything is read.

    Raises:
        UserError: if it is missing, unreadable or larger than `limit`.
    """
    with open_read(path) as file, _reading(path):
        if limit is None:
            return file.read()
        found = _file_size(file)
        data = file.read(limit + 1) if found <= limit else b""
    if max(found, len(data)) <= limit:
        return data
    allowed = human_size(limit).replace(".0 ", " ")
    raise UserError(f"{human_size(max(found, len(data)))} is above {allowed}", where=path)


def read_text(path: StrPath, *, limit: int | None = None) -> str:
    """The whole content of a UTF-8 text file; line ends are kept as they are.

    Raises:
        UserError: as `read_bytes`, or "not UTF-8 (byte 12)".
    """
    try:
        return read_bytes(path, limit=limit).decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"not UTF-8 (byte {error.start})", where=path) from None


def sha256(path: StrPath) -> str:
    """Hash of a file's content, 64 hexadecimal digits; `UserError` if it cannot be read."""
    digest = hashlib.sha256()
    with open_read(path) as file, _reading(path):
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def list_dir(path: StrPath) -> list[Path]:
    """The paths of what a folder holds, sorted by name; `UserError` if there is no such folder."""
    try:
        names = os.listdir(path)
    except NotADirectoryError:
        raise UserError("is a file, not a folder", where=path) from None
    except FileNotFoundError:
        raise UserError(f"no such folder{_suggestion(path)}", where=path) from None
    except OSError as error:
        raise UserError(f"cannot be read ({_reason(error)})", where=path) from None
    return [Path(path, name) for name in sorted(names)]


def exists(path: StrPath) -> bool:
    """Whether there is a file or folder at `path`; a link that leads nowhere counts as none."""
    return os.path.exists(path)


def is_dir(path: StrPath) -> bool:
    """Whether there is a folder at `path`."""
    return os.path.isdir(path)


def size(path: StrPath) -> int:
    """Bytes in a file; `UserError` if it is missing."""
    with _reading(path):
        return os.stat(path).st_size


def stamp(path: StrPath) -> tuple[int, int]:
    """(bytes, time of the last change in ns) of a file: equal while nobody wrote to it."""
    with _reading(path):
        found = os.stat(path)
    return found.st_size, found.st_mtime_ns


def free_bytes(path: StrPath) -> int:
    """Bytes a user may still write where `path` is, or would be made."""
    place = Path(path).absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    found = os.statvfs(place)
    return found.f_bavail * found.f_frsize


# Writing ------------------------------------------------------------------------------------------


class HashingFile:
    """A new file, hashed as it is written and on the medium when `close` returns.

    As a context manager it closes durably, or, when the body raised, drops the descriptor without
    a flush. After a failed write or flush the kernel may have dropped pages and will report that
    only once: this object then refuses everything, and the caller writes a new file.

    Args:
        path: must not exist yet.
    """

    def __init__(self, path: StrPath) -> None:
        self.path = Path(path)
        self.size = 0
        """Bytes written so far."""
        self._hash = hashlib.sha256()
        self._fd: int | None = current().create(self.path)

    @classmethod
    def create(cls, path: StrPath) -> HashingFile:
        """Make the file; `FileExistsError` if there is one."""
        return cls(path)

    @property
    def sha256(self) -> str:
        """Hash of what was written so far, 64 hexadecimal digits."""
        return self._hash.hexdigest()

    def tell(self) -> int:
        """Bytes written so far."""
        return self.size

    def write(self, data: Bytes) -> int:
        """Append all of `data` (C-contiguous); returns its bytes."""
        view = memoryview(data).cast("B") if memoryview(data).nbytes else memoryview(b"")
        with self._dropped_on_error() as fd:
            current().write(fd, view)
        self._hash.update(view)
        self.size += len(view)
        return len(view)

    def close(self) -> None:
        """Flush to the medium and close."""
        with self._dropped_on_error() as fd:
            current().fsync(fd)
        self._fd = None
        current().close(fd)

    def drop(self) -> None:
        """Close without a flush; what was written is worth nothing. Twice does no harm."""
        fd, self._fd = self._fd, None
        if fd is not None:
            with contextlib.suppress(OSError):
                current().close(fd)

    @contextmanager
    def _dropped_on_error(self) -> Iterator[int]:
        if self._fd is None:
            raise OSError(errno.EBADF, "closed, or an earlier write failed", str(self.path))
        try:
            yield self._fd
        except BaseException:
            self.drop()
            raise

    def __enter__(self) -> HashingFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        if error is not None:
            self.drop()
        elif self._fd is not None:
            self.close()


def temporary(path: StrPath) -> Path:
    """A new name beside `path` for its draft: ``tmp-<name>-<nonce>``."""
    target = Path(path)
    return target.with_name(f"{TEMPORARY}{target.name}-{os.urandom(4).hex()}")


def write_atomic(path: StrPath, data: bytes | str) -> None:
    """Write a file that is either the old one or wholly the new one, whatever happens.

    Raises:
        OSError: the old content, if any, is untouched, unless only the last step failed (the
            flush of the folder's names), where the new one is already in place.
    """
    target, draft = Path(path), temporary(path)
    try:
        with HashingFile(draft) as file:
            file.write(data.encode() if isinstance(data, str) else data)
        current().rename(draft, target)
    except BaseException:
        with contextlib.suppress(OSError):
            remove_file(draft)
        raise
    current().fsync_dir(target.parent)


def append(path: StrPath, data: bytes) -> None:
    """Add `data` at the end of a file, made if need be. Not flushed: for logs."""
    fd = current().open_append(Path(path))
    try:
        current().write(fd, memoryview(data))
    finally:
        current().close(fd)


def make_dir(path: StrPath) -> None:
    """Make a folder and the folders above it, each name on the medium; one may exist already."""
    target = Path(path)
    if target.is_dir():
        return
    make_dir(target.parent)
    with contextlib.suppress(FileExistsError):
        current().mkdir(target)
    if not target.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(target))
    current().fsync_dir(target.parent)


def rename(old: StrPath, new: StrPath) -> None:
    """Give `old` the name `new`; on the medium only after `fsync_dir` of the folder(s)."""
    current().rename(Path(old), Path(new))


def fsync_dir(path: StrPath) -> None:
    """Return when the names in a folder are on the medium."""
    current().fsync_dir(Path(path))


def remove_file(path: StrPath) -> None:
    """Remove one file; nothing happens if there is none."""
    with contextlib.suppress(FileNotFoundError):
        current().unlink(Path(path))


def remove_tree(path: StrPath) -> None:
    """Remove a folder and all in it (links are removed, not followed), or one file."""
    target = Path(path)
    if target.is_symlink() or not target.is_dir():
        remove_file(target)
        return
    for child in sorted(os.listdir(target)):
        remove_tree(target / child)
    with contextlib.suppress(FileNotFoundError):
        current().rmdir(target)


def check_writable(path: StrPath) -> None:
    """Make the folder `path` and try all that a save needs there (create, flush, rename, remove).

    Raises:
        UserError: "cannot write (Read-only file system)", with the system's own reason.
    """
    first, second = temporary(Path(path, "probe")), temporary(Path(path, "probe"))
    try:
        make_dir(path)
        with HashingFile(first) as file:
            file.write(b"probe")
        current().rename(first, second)
        current().fsync_dir(Path(path))
        current().unlink(second)
    except OSError as error:
        for draft in (first, second):
            with contextlib.suppress(OSError):
                remove_file(draft)
        raise UserError(f"cannot write ({_reason(error)})", where=path) from None


# Errors -------------------------------------------------------------------------------------------


@contextmanager
def _reading(path: StrPath | int) -> Iterator[None]:
    try:
        yield
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"no such file{_suggestion(path)}", where=str(path)) from None
    except IsADirectoryError:
        raise UserError("is a folder, not a file", where=str(path)) from None
    except PermissionError:
        raise UserError(
            "may not be read by this user; see its permissions", where=str(path)
        ) from None
    except (OSError, ValueError) as error:
        raise UserError(f"cannot be read ({_reason(error)})", where=str(path)) from None


def _suggestion(path: StrPath | int) -> str:
    parent, name = os.path.split(os.fspath(path) if not isinstance(path, int) else str(path))
    try:
        names = os.listdir(parent or ".")
    except OSError:
        return f"; nor is there a folder {parent}" if parent else ""
    # Comparing with the names of a huge folder would take longer than anyone waits for a hint.
    close = difflib.get_close_matches(name, names, n=1) if len(names) <= _FEW else []
    return f"; did you mean {close[0]}?" if close else ""


def _reason(error: OSError | ValueError) -> str:
    return getattr(error, "strerror", None) or str(error)


def _file_size(file: IO[bytes]) -> int:
    return os.fstat(file.fileno()).st_size
