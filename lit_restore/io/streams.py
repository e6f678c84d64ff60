"""Tar archives read from front to back: for what has no end, or cannot be kept.

A stream may be a local file, a URL, or, where the command line trusts its configs, a shell command
(``pipe:``). As in `archive`, members are keys and are never extracted; links and devices are left
out, sizes are checked before anything is read.
"""

from __future__ import annotations

import io
import os
import signal
import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import suppress
from typing import Protocol

from lit_restore.errors import UserError
from lit_restore.io import archive, fs
from lit_restore.io.remote import NETWORK, Network, TransferError, open_stream, retrying
from lit_restore.io.urls import PIPE, is_pipe, is_remote
from lit_restore.io.wording import human_size, shown

_NAMES_LIMIT = 1 << 20
_EXTENSIONS = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)


class Body(Protocol):
    """Bytes from front to back."""

    def read(self, size: int, /) -> bytes:
        """Up to `size` bytes; none at the end."""

    def close(self) -> None:
        """Give it up."""


def open_body(name: str, *, trusted: bool, network: Network = NETWORK) -> Body:
    """Open a stream by name.

    Args:
        name: a path, a URL, or ``pipe:COMMAND``.
        trusted: whether a command may be run.
        network: how patient to be with a URL; it is opened again as `retrying` does, but what
            breaks off in the middle is not.

    Raises:
        UserError: it cannot be opened, or is a command and not trusted.
    """
    if is_pipe(name):
        if not trusted:
            raise UserError("pipe: runs a shell; --trust_config allows it")
        return _Pipe(name.removeprefix(PIPE))
    if is_remote(name):
        return retrying(lambda: open_stream(name, network=network), url=name, network=network)
    return fs.open_read(name)


def members(body: Body) -> Iterator[tuple[str, bytes]]:
    """(name, content) of each regular file of a tar, plain or compressed, as it comes by.

    Raises:
        UserError: damaged, no tar, cut, or with a member that is refused.
        TransferError: the stream broke off.
    """
    try:
        with tarfile.open(fileobj=body, mode="r|*", tarinfo=_Header) as tar:  # type: ignore[call-overload]
            for info in tar:
                if info.isreg() and not _is_remark(info.name):
                    yield info.name, _content(tar, info)
                tar.members = []  # it would keep every header of an endless stream
    except (tarfile.TarError, EOFError) as error:
        raise UserError(f"damaged, or no tar ({shown(str(error))})") from None


def _content(tar: tarfile.TarFile, info: tarfile.TarInfo) -> bytes:
    if info.size > archive.MEMBER_LIMIT:
        raise UserError(
            f"{shown(info.name)} says {human_size(info.size)}, limit "
            f"{human_size(archive.MEMBER_LIMIT)}"
        )
    file = tar.extractfile(info)
    return b"" if file is None else file.read()


def _is_remark(name: str) -> bool:
    base = name.rsplit("/", 1)[-1]
    remark = "/" not in name and name.startswith("__") and name.endswith("__")
    return remark or base.startswith("._") or name.startswith("__MACOSX/")


class _Header(tarfile.TarInfo):
    """A header that lets no archive end without its end mark, and no name fill the memory."""

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> _Header:
        try:
            return super().fromtarfile(tarfile_)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise  # the end mark
        except tarfile.HeaderError as error:  # elsewhere than at its start, tarfile ends in silence
            raise tarfile.ReadError(f"{error}; no end mark: cut?") from None

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _Header:
        header = super().frombuf(buf, encoding, errors)
        if header.type in _EXTENSIONS and header.size > _NAMES_LIMIT:
            raise tarfile.ReadError(f"a name record of {human_size(header.size)}")
        return header


class _Pipe:
    """What a shell command prints; it ends with us, and must end well."""

    def __init__(self, command: str) -> None:
        self._process = subprocess.Popen(  # noqa: S602  (trusted by hand)
            command, shell=True, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip

    def read(self, size: int, /) -> bytes:
        assert isinstance(self._process.stdout, io.BufferedReader)
        data = self._process.stdout.read1(size)  # what is there: a live stream may pause
        if not data and (code := self._process.wait()):
            raise TransferError(f"the command ended with code {code}")
        return data

    def close(self) -> None:
        # A shell's children hold the pipe too; SIGTERM is blocked in data workers and theirs.
        with suppress(OSError):
            os.killpg(self._process.pid, signal.SIGKILL)
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._process.wait()
