"""Remote shards on the local disk: fetched once a machine, checked before they get their name.

```
CACHE/<hash>/train-000000.tar    whole and checked, or not there
CACHE/<hash>/tmp-…               a draft; swept by the next who fetches this entry
CACHE/locks/<hash>               flock: shared while fetched or in use, exclusive to evict;
                                 its time of change is that of the last use
CACHE/locks/<hash>.fetch         flock: exclusive to fetch
```
No lock is exchanged for another: who waits for an exclusive one that others hold shared, because
they have fetched meanwhile, would wait for as long as they use it, and they may wait for him.
The hash is of the URL without its secrets, the expected size and the expected sha256. Lock files
stay: removing one would let two processes hold locks on two files of one name.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import logging
import os
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from lit_restore.errors import UserError
from lit_restore.io import archive, fs
from lit_restore.io.remote import NETWORK, Network, Stream, TransferError, open_stream, retrying
from lit_restore.io.urls import file_name, identity, public
from lit_restore.io.wording import human_size

_log = logging.getLogger(__name__)

VARIABLE = "LIT_RESTORE_CACHE"
_TURN = ".fetch"
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EINVAL)


def default_folder() -> Path:
    """``$LIT_RESTORE_CACHE``, else ``lit_restore`` in ``$XDG_CACHE_HOME`` or ``~/.cache``."""
    named = os.environ.get(VARIABLE)
    if named:
        return Path(os.path.expanduser(named))
    home = os.path.expanduser(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    # A user without a home, as in some containers.
    return Path("data/cache") if home.startswith("~") else Path(home) / "lit_restore"


@dataclass(frozen=True, kw_only=True)
class Remote:
    """One remote shard and what is known of it."""

    url: str
    size: int | None = None
    """Bytes, where a manifest says so."""
    sha256: str | None = None
    """Of the whole file, where a manifest says so."""

    @property
    def key(self) -> str:
        """Names the cache entry; holds no secret."""
        text = "\0".join((identity(self.url), str(self.size), str(self.sha256)))
        return hashlib.sha256(text.encode()).hexdigest()[:32]


class Pin:
    """A cached shard in use: it is not evicted until `close`, or the end of the process.

    Args:
        path: the shard.
        fd: an open lock file on which a shared lock is held.
    """

    def __init__(self, path: Path, fd: int) -> None:
        self.path = path
        self._fd: int | None = fd

    def close(self) -> None:
        """The entry may go. Twice does no harm."""
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)

    def __del__(self) -> None:
        with suppress(OSError):
            self.close()


class Cache:
    """Shards fetched from elsewhere, the ones used last kept.

    Any number of processes and machines may share a folder whose file system has locks.

    Args:
        folder: made if need be.
        limit: bytes kept. Entries in use are never evicted, so it may be exceeded for a while;
            that is told once.
        network: how patient transfers are.
    """

    def __init__(self, folder: fs.StrPath, *, limit: int, network: Network = NETWORK) -> None:
        self.folder = Path(os.path.expanduser(folder))
        self.limit = limit
        self.network = network
        self._told = False

    def fetch(self, remote: Remote, *, wait: bool = True) -> Pin | None:
        """A shard as a local file, fetched if it is not there.

        Args:
            remote: which one.
            wait: False: None at once where another process or thread is fetching it.

        Raises:
            UserError: it cannot be had, is larger than the cache, or the disk is full.
        """
        if remote.size is not None:
            self._refuse_larger(remote.size, remote)
        path = self.folder / remote.key / file_name(remote.url)
        fd = self._open_lock(remote.key)
        try:
            _lock(fd, fcntl.LOCK_SH)
            if not (_is_whole(path, remote) or self._fetch_once(remote, path, wait=wait)):
                _give_up(fd)
                return None
            # The kernel's own "now" is as coarse as its tick.
            os.utime(fd, ns=(time.time_ns(), time.time_ns()))
            return Pin(path, fd)
        except BaseException:
            _give_up(fd)
            raise

    def _fetch_once(self, remote: Remote, path: Path, *, wait: bool) -> bool:
        """Fetch what nobody else is fetching; whether it is there then."""
        turn = self._open_lock(remote.key + _TURN)
        try:
            if not _lock(turn, fcntl.LOCK_EX, wait=wait):
                return False
            if not _is_whole(path, remote):
                self._download(remote, path)
            return True
        finally:
            _give_up(turn)

    # Fetching ----------------------------------------------------------------------------------

    def _download(self, remote: Remote, path: Path) -> None:
        """In its turn: drafts until one passes its checks, then the name."""
        with _writing(self.folder, remote):
            fs.remove_tree(path.parent)  # drafts of the dead, a file of another size
            fs.make_dir(path.parent)
        retrying(lambda: self._attempt(remote, path), url=remote.url, network=self.network)
        self._make_room(0, keep=remote.key)

    def _attempt(self, remote: Remote, path: Path) -> None:
        draft = fs.temporary(path)
        try:
            with open_stream(remote.url, network=self.network) as stream:
                self._expect(stream.length, remote)
                self._make_room(stream.length or remote.size or 0, keep=remote.key)
                with _writing(self.folder, remote):
                    digest = self._copy(stream, draft, remote)
            _check(draft, digest, remote)
            with _writing(self.folder, remote):
                fs.rename(draft, path)
                fs.fsync_dir(path.parent)
        except BaseException:
            with suppress(OSError):
                fs.remove_file(draft)
            raise

    def _expect(self, length: int | None, remote: Remote) -> None:
        if length is None:
            return
        if remote.size is not None and length != remote.size:
            raise TransferError(f"has {length} bytes, the manifest says {remote.size}")
        self._refuse_larger(length, remote)

    def _copy(self, stream: Stream, draft: Path, remote: Remote) -> str:
        with fs.HashingFile(draft) as file:
            while data := stream.read():
                file.write(data)
                if remote.size is not None and file.size > remote.size:
                    raise TransferError(f"is longer than the {remote.size} bytes expected")
                self._refuse_larger(file.size, remote)
        if remote.size is not None and file.size != remote.size:
            raise TransferError(f"ended at byte {file.size} of {remote.size}")
        return file.sha256

    def _refuse_larger(self, size: int, remote: Remote) -> None:
        if size > self.limit:
            raise UserError(
                f"{public(remote.url)} has {human_size(size)} or more, above "
                f"{human_size(self.limit)}; raise it, or make smaller shards",
                where="data.cache_gb",
            )

    # Evicting ----------------------------------------------------------------------------------

    def _make_room(self, needed: int, *, keep: str) -> None:
        """Evict what was not used for longest and nobody uses now."""
        found = sorted(_entries(self.folder))
        total = sum(size for _, size, _ in found) + needed
        for _, size, key in found:
            if total <= self.limit:
                return
            if key != keep and self._evict(key):
                total -= size
        if total > self.limit and not self._told:
            self._told = True
            _log.warning(
                "%s: shards in use take %s, above data.cache_gb (%s)",
                self.folder, human_size(total), human_size(self.limit),
            )  # fmt: skip

    def _evict(self, key: str) -> bool:
        fd = self._open_lock(key)
        try:
            if not _lock(fd, fcntl.LOCK_EX, wait=False):
                return False
            with suppress(OSError):
                fs.remove_tree(self.folder / key)
            return True
        finally:
            _give_up(fd)

    def _open_lock(self, key: str) -> int:
        path = self.folder / "locks" / key
        try:
            fs.make_dir(path.parent)
            return os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise UserError(
                f"cannot write ({error.strerror}); set data.cache_dir or {VARIABLE}",
                where=self.folder,
            ) from None


def _is_whole(path: Path, remote: Remote) -> bool:
    """The name alone says whole and checked; a size that differs says that someone changed it."""
    try:
        found = os.stat(path).st_size
    except OSError:
        return False
    return remote.size is None or found == remote.size


def _check(draft: Path, digest: str, remote: Remote) -> None:
    if remote.sha256 is not None:
        if digest != remote.sha256:
            raise TransferError("its sha256 is not the manifest's")
        return
    try:
        archive.scan_tar(draft)
    except UserError as error:
        raise TransferError(error.message) from None


def _entries(folder: Path) -> Iterator[tuple[int, int, str]]:
    """(time of last use in ns, bytes, hash) of every entry."""
    with suppress(OSError):
        for name in os.listdir(folder):
            if name == "locks":
                continue
            with suppress(OSError):
                used = os.stat(folder / "locks" / name).st_mtime_ns
                yield used, _bytes_below(folder / name), name


def _bytes_below(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        with suppress(OSError):
            total += path.stat().st_size if path.is_file() else 0
    return total


def _give_up(fd: int) -> None:
    """Unlock and close: closing alone leaves the lock to a child forked meanwhile."""
    with suppress(OSError):
        fcntl.flock(fd, fcntl.LOCK_UN)
    os.close(fd)


def _lock(fd: int, kind: int, *, wait: bool = True) -> bool:
    """Take a lock; whether it was had."""
    try:
        fcntl.flock(fd, kind | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        warnings.warn("data.cache_dir: its file system has no locks", stacklevel=2)
    return True


@contextmanager
def _writing(folder: Path, remote: Remote) -> Iterator[None]:
    """What the disk refuses; what the network does is a `TransferError` already."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        mend = "free some space, lower data.cache_gb or set data.cache_dir"
        raise UserError(
            f"{'the disk is full' if full else f'cannot write ({error.strerror})'}, fetching "
            f"{public(remote.url)}; {mend}",
            where=folder,
        ) from None
