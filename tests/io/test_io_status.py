"""STATUS.json: what a launcher reads, whatever happened to the writer."""

from __future__ import annotations

import errno
import json
import os
import socket
from pathlib import Path

import pytest

from lit_restore.io import fs, status


def write(run_dir: Path, **changes: object) -> bool:
    content = {
        "state": "running",
        "code": None,
        "samples_seen": 6400,
        "checkpoint": "step-000000006400",
        "message": "",
    }
    return status.write_status(run_dir, **(content | changes))


def test_what_is_written_is_read(tmp_path):
    assert write(tmp_path, state="preempted", code=75, message="SIGTERM")
    found = status.read_status(tmp_path)
    assert (found.state, found.code, found.samples_seen) == ("preempted", 75, 6400)
    assert (found.checkpoint, found.message) == ("step-000000006400", "SIGTERM")
    assert (found.host, found.pid) == (socket.gethostname(), os.getpid())
    assert write(tmp_path, checkpoint=None)
    assert status.read_status(tmp_path).checkpoint is None
    assert [path.name for path in tmp_path.iterdir()] == ["STATUS.json"]


def test_the_keys_are_those_that_recipes_read(tmp_path):
    write(tmp_path)
    found = json.loads((tmp_path / "STATUS.json").read_text())
    keys = {"state", "code", "samples_seen", "checkpoint", "message", "host", "pid", "time"}
    assert set(found) == keys


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EROFS])
def test_a_disk_that_refuses_is_told_but_not_raised_and_the_old_status_stays(tmp_path, number):
    class Refusing(fs.Disk):
        def write(self, fd: int, data: memoryview) -> None:
            raise OSError(number, os.strerror(number))

    write(tmp_path, samples_seen=1)
    with fs.using(Refusing()):
        assert not write(tmp_path, samples_seen=2)
    assert status.read_status(tmp_path).samples_seen == 1
    assert not write(tmp_path / "gone")


@pytest.mark.parametrize(
    "content",
    [b"", b"{}", b"[]", b"null", b"\xff", b"[" * 100_000, b'{"state": "dreaming"}', b" " * 2**21],
)
def test_a_status_that_makes_no_sense_is_none(tmp_path, content):
    (tmp_path / "STATUS.json").write_bytes(content)
    assert status.read_status(tmp_path) is None
    assert status.read_status(tmp_path / "none") is None


@pytest.mark.parametrize("change", [{"state": "dreaming"}, {"pid": "x"}, {"samples_seen": None}])
def test_one_wrong_field_spoils_a_status(tmp_path, change):
    write(tmp_path)
    found = json.loads((tmp_path / "STATUS.json").read_text())
    (tmp_path / "STATUS.json").write_text(json.dumps(found | change))
    assert status.read_status(tmp_path) is None
