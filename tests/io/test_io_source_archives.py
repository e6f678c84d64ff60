"""Members of a gzipped tar: whole ones, and one line for what is not."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from lit_restore.errors import UserError
from lit_restore.io.source_archives import read_members


def write(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def test_members_come_in_the_order_asked_for(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tar.gz", {"p/a": b"one", "p/b": b"two"})
    assert read_members(path, ["p/b", "p/a"], limit=10) == [b"two", b"one"]


def test_what_is_not_whole_is_one_line(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tar.gz", {"p/a": b"one", "p/b": b"0123456789"})
    for name, limit, line in (("p/b", 9, "holds no p/b of 1 to 9 bytes"), ("p/c", 9, "no whole")):
        with pytest.raises(UserError, match=line):
            read_members(path, [name], limit=limit)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(UserError, match="no whole"):
        read_members(path, ["p/b"], limit=99)
    path.write_bytes(b"no gzip")
    with pytest.raises(UserError, match="no whole"):
        read_members(path, ["p/b"], limit=99)
