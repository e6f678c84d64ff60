"""Where each file of a tar archive lies: a header scan that never extracts.

Names are keys here, never paths to write to, yet everything that could hurt another reader is
refused: links, devices, FIFOs, sparse files, names that climb out, sizes past the file's end,
names that appear twice, and samples whose files are not neighbours (webdataset silently makes two
samples of those). Understands ustar, GNU long names and pax headers, which is what
`webdataset.TarWriter`, Python's `tarfile` and GNU, BSD and busybox tar write.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from os import PathLike
from typing import BinaryIO

from lit_restore.errors import UserError
from lit_restore.io import fs
from lit_restore.io.wording import human_size, shown

MEMBER_LIMIT = 256 * 1000**2
"""Largest member of a shard, in bytes."""
NAME_LIMIT = 4096
"""Longest member name, in bytes."""

_BLOCK = 512
_ZEROS = bytes(_BLOCK)
_PAX_LIMIT = 1 << 20
_FAR = 1 << 14
_NEAR_READ, _FAR_READ = 1 << 18, 1 << 12
_END_CHECKED = 1 << 16

_REFUSED = {
    b"1": "a hard link",
    b"2": "a symlink",
    b"3": "a device",
    b"4": "a device",
    b"6": "a FIFO",
    b"S": "a sparse file",
}
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_SAMPLE = re.compile(r"((?:.*/|)[^.]+)[.][^/]*", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Member:
    """One regular file inside a tar archive."""

    name: str
    """Path inside the archive, as written there."""
    offset: int
    """Byte of the archive at which its data begin."""
    size: int
    """Length of its data in bytes."""


def scan_tar(
    path: str | PathLike[str], *, samples: bool = True, member_limit: int = MEMBER_LIMIT
) -> list[Member]:
    """The regular files of a tar archive, in archive order, from its headers alone.

    Directories, AppleDouble files (``._x``, ``__MACOSX/``) and webdataset's top-level ``__x__``
    remarks are left out.

    Args:
        path: the archive; uncompressed.
        samples: also refuse samples whose files are not neighbours; off for archives that are no
            shard of samples.
        member_limit: largest allowed member in bytes.

    Raises:
        UserError: the archive is damaged, compressed, no tar, holds no files, or has a member that
            is refused (see the module's text).
    """
    with fs.open_read(path) as file:
        scan = _Scan(file, str(path), member_limit)
        members = list(scan.members())
    if not members:
        raise UserError("no files in this archive", where=path)
    _check_names(members, str(path), samples=samples)
    return members


def sample_key(name: str) -> str | None:
    """The sample a member belongs to: its path up to the first dot of the base name.

    The rule of `webdataset` (``base_plus_ext``); None for a name without a dot.
    """
    match = _SAMPLE.fullmatch(name)
    return match[1] if match else None


def _check_names(members: list[Member], where: str, *, samples: bool) -> None:
    names: set[str] = set()
    finished: set[str] = set()
    current: str | None = None
    for member in members:
        if member.name in names:
            raise UserError(f"{shown(member.name)} appears twice", where=where)
        names.add(member.name)
        key = sample_key(member.name) if samples else None
        if key is None or key == current:
            continue
        if key in finished:
            raise UserError(f'sample "{shown(key)}" is split; repack with shards make', where=where)
        finished.add(key)
        current = key


class _Scan:
    """One pass over the headers: buffered reads where files are small, seeks where they are big."""

    def __init__(self, file: BinaryIO, where: str, member_limit: int) -> None:
        self.file, self.where, self.member_limit = file, where, member_limit
        self.length = os.fstat(file.fileno()).st_size
        self.buffer, self.start = b"", 0
        self.ahead = _NEAR_READ
        self.global_pax: dict[str, str] = {}

    def members(self) -> Iterator[Member]:
        """Every regular file that is not ignored, in order."""
        self._check_beginning()
        at, last = 0, ""
        pax: dict[str, str] = {}
        while (header := self._header(at, last)) is not None:
            kind, size, data = header[156:157], self._number(header, 124, 136, at), at + _BLOCK
            if kind in b"LKxgX":
                pax |= self._extension(kind, data, size, at)
                at = _after(data, size)
                continue
            last, size = self._name(header, pax, at), self._pax_size(pax, size, at)
            if kind == b"5" or (kind in b"0\0" and last.endswith("/")):
                at = data
            else:
                self._check(last, kind, size, data, pax)
                if not _ignored(last):
                    yield Member(last, data, size)
                at = _after(data, size)
            self.ahead = _FAR_READ if size > _FAR else _NEAR_READ
            pax = {}
        self._check_end(at + _BLOCK)

    def _check_beginning(self) -> None:
        if self.length == 0:
            raise UserError("empty file", where=self.where)
        head = self._bytes(0, min(_BLOCK, self.length))
        for magic, name in _COMPRESSED.items():
            if head.startswith(magic):
                raise UserError(
                    f"{name}-compressed, cannot be read in place; unpack it first", where=self.where
                )
        if head.lstrip()[:5].lower() in (b"<html", b"<!doc", b"<?xml"):
            raise UserError("HTML page, not a tar (expired link?)", where=self.where)

    def _check_end(self, at: int) -> None:
        rest = self._bytes(at, min(_END_CHECKED, max(0, self.length - at)))
        if rest.strip(b"\0"):
            raise UserError(
                f"data after the end mark at byte {at - _BLOCK} (two archives joined?); "
                "repack with shards make",
                where=self.where,
            )

    def _bytes(self, at: int, size: int) -> bytes:
        """`size` bytes at `at`; the caller knows that the file holds them."""
        begin = at - self.start
        if begin < 0 or begin + size > len(self.buffer):
            read = min(max(size, self.ahead), self.length - at)
            self.buffer, self.start, begin = fs.pread(self.file, read, at), at, 0
        return self.buffer[begin : begin + size]

    def _header(self, at: int, last: str) -> bytes | None:
        """The header block at `at`, its checksum verified; None for the end mark."""
        if at >= self.length:
            raise UserError(f"no end mark: cut after {shown(last)}?", where=self.where)
        if at + _BLOCK > self.length:
            what = f"ends inside a header at byte {self.length}" if at else "bad header at byte 0"
            raise UserError(what, where=self.where)
        block = self._bytes(at, _BLOCK)
        if block == _ZEROS:
            return None
        stated = self._number(block, 148, 156, at)
        total = sum(block) - sum(block[148:156]) + 8 * 0x20
        # Some old tars summed signed bytes.
        if stated != total and stated != total - 256 * _high(block):
            raise self._bad(at)
        return block

    def _bad(self, at: int) -> UserError:
        return UserError(f"bad header at byte {at}", where=self.where)

    def _number(self, header: bytes, begin: int, end: int, at: int) -> int:
        """A header's number: octal digits, or GNU's base 256 where the first byte is 0x80."""
        field = header[begin:end]
        if field[0] == 0x80:
            return int.from_bytes(field[1:], "big")
        digits = field.split(b"\0", 1)[0].strip()
        if not digits.isdigit():
            if digits:
                raise self._bad(at)
            return 0
        try:
            return int(digits, 8)
        except ValueError:
            raise self._bad(at) from None

    def _extension(self, kind: bytes, data: int, size: int, at: int) -> dict[str, str]:
        """What a GNU long name or a pax header says about the next member."""
        if size > (_PAX_LIMIT if kind in b"xgX" else NAME_LIMIT + 1):
            raise UserError(
                f"a name record of {human_size(size)} at byte {at} is refused", where=self.where
            )
        if data + size > self.length:
            raise UserError(f"ends inside a name record at byte {self.length}", where=self.where)
        body = self._bytes(data, size)
        if kind == b"K":
            return {}  # a link's target; the link itself is refused
        if kind == b"L":
            return {"path": self._text(body.removesuffix(b"\0"), at)}
        records = dict(self._records(body, at))
        if kind == b"g":
            self.global_pax |= records
            return {}
        return records

    def _records(self, body: bytes, at: int) -> Iterator[tuple[str, str]]:
        """The records of a pax header: ``LENGTH KEY=VALUE`` and a line feed each."""
        begin = 0
        while body[begin : begin + 1] not in (b"", b"\0"):
            digits, space, _ = body[begin : begin + 8].partition(b" ")
            length = int(digits) if space and digits.isdigit() else 0
            key, equals, value = body[begin + len(digits) + 1 : begin + length].partition(b"=")
            begin += length
            if not equals or not value.endswith(b"\n") or begin > len(body):
                raise self._bad(at)
            text = value[:-1] if key in (b"path", b"size") else b""
            yield self._text(key, at), self._text(text, at)

    def _text(self, data: bytes, at: int) -> str:
        try:
            return data.decode()
        except UnicodeDecodeError:
            raise UserError(
                f"member name at byte {at} is not UTF-8; repack with shards make", where=self.where
            ) from None

    def _name(self, header: bytes, pax: dict[str, str], at: int) -> str:
        long = pax.get("path", self.global_pax.get("path"))
        if long is not None:
            return long
        raw = header[:100].split(b"\0", 1)[0]
        # GNU's own format (magic "ustar  ") keeps times where ustar keeps the name's beginning.
        if header[257:263] == b"ustar\0":
            prefix = header[345:500].split(b"\0", 1)[0]
            raw = prefix + b"/" + raw if prefix else raw
        return self._text(raw, at)

    def _pax_size(self, pax: dict[str, str], size: int, at: int) -> int:
        stated = pax.get("size", self.global_pax.get("size"))
        if stated is None:
            return size
        if not stated.isascii() or not stated.isdigit() or len(stated) > 20:
            raise self._bad(at)
        return int(stated)

    def _check(self, name: str, kind: bytes, size: int, data: int, pax: dict[str, str]) -> None:
        """Refuse what no shard needs and a hostile one uses."""
        _check_path(name, self.where)
        sparse = any(key.startswith("GNU.sparse.") for key in pax)
        if sparse or kind not in b"0\x007":
            what = "a sparse file" if sparse else _REFUSED.get(kind, f"of type {kind!r}")
            raise UserError(f'member "{shown(name)}" is {what}, refused', where=self.where)
        beyond = data + size > self.length
        if beyond and size <= self.member_limit:
            raise UserError(f"ends inside {shown(name)} at byte {self.length}", where=self.where)
        if size > self.member_limit:
            other = f"file has {self.length} bytes" if beyond else "limit "
            other += "" if beyond else human_size(self.member_limit)
            raise UserError(f"{shown(name)} says {human_size(size)}, {other}", where=self.where)


def _after(data: int, size: int) -> int:
    """Where the header after `size` bytes of data at `data` begins."""
    return data + (size + _BLOCK - 1) // _BLOCK * _BLOCK


def _high(block: bytes) -> int:
    """How many bytes outside the checksum field have their top bit set."""
    return sum(byte >> 7 for byte in block[:148] + block[156:])


def _ignored(name: str) -> bool:
    base = name.rsplit("/", 1)[-1]
    remark = "/" not in name and name.startswith("__") and name.endswith("__")
    return base.startswith("._") or name.startswith("__MACOSX/") or remark


def _check_path(name: str, where: str) -> None:
    if len(name.encode()) > NAME_LIMIT:
        raise UserError(f'member "{shown(name)}" refused (name above 4 KB)', where=where)
    climbs = name.startswith("/") or ".." in name.split("/")
    if climbs or not name or "\0" in name or "\\" in name:
        raise UserError(f'member "{shown(name)}" refused (path)', where=where)
