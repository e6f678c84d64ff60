"""Reading names the file and what is wrong with it; writing is durable or says that it is not."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lit_restore.errors import UserError
from lit_restore.io import fs


def refusal(call, *args, **options) -> str:
    with pytest.raises(UserError) as info:
        call(*args, **options)
    text = str(info.value)
    assert "\n" not in text
    return text


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "train-0001.tar"
    path.write_bytes(bytes(range(100)))
    return path


def test_what_is_wrong_with_a_named_file_is_one_line(tmp_path, file):
    near, far = tmp_path / "train-001.tar", tmp_path / "nothing" / "a"
    assert refusal(fs.read_bytes, near) == f"{near}: no such file; did you mean {file.name}?"
    assert refusal(fs.read_bytes, far) == f"{far}: no such file; nor is there a folder {far.parent}"
    assert refusal(fs.open_read, tmp_path) == f"{tmp_path}: is a folder, not a file"
    assert refusal(fs.size, file / "x").startswith(f"{file / 'x'}: no such file")
    assert refusal(fs.stamp, near).startswith(f"{near}: no such file")
    assert refusal(fs.sha256, near).startswith(f"{near}: no such file")
    assert refusal(fs.read_bytes, "a\0b") == "a\0b: cannot be read (embedded null byte)"
    assert refusal(fs.list_dir, file) == f"{file}: is a file, not a folder"
    assert refusal(fs.list_dir, far).startswith(f"{far}: no such folder")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_named(file):
    file.chmod(0)
    assert "may not be read by this user" in refusal(fs.read_bytes, file)


def test_a_pipe_is_refused_instead_of_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert refusal(fs.read_bytes, tmp_path / "pipe").endswith("is not a regular file")


def test_a_limit_is_checked_before_reading(file):
    assert fs.read_bytes(file, limit=100) == bytes(range(100))
    assert refusal(fs.read_bytes, file, limit=99) == f"{file}: 100 bytes is above 99 bytes"
    big = file.with_name("big")
    with big.open("wb") as handle:
        handle.truncate(1 << 40)  # sparse: reading it would take all memory
    assert refusal(fs.read_bytes, big, limit=1_000_000) == f"{big}: 1.1 TB is above 1 MB"


def test_text_is_strict_utf8_and_names_the_byte(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_bytes("lr: 1\r\nσ: 2\n".encode())
    assert fs.read_text(path) == "lr: 1\r\nσ: 2\n"
    path.write_bytes(b"0123456789ab\xff")
    assert refusal(fs.read_text, path) == f"{path}: not UTF-8 (byte 12)"


def test_pread_gives_exactly_what_is_asked_for_or_says_where_the_file_ends(file):
    with fs.open_read(file) as handle:
        assert fs.pread(handle, 3, 97) == bytes((97, 98, 99))
        assert fs.pread(handle, 0, 1000) == b""
        assert refusal(fs.pread, handle, 3, 98) == f"{file}: ends at byte 100"
        assert refusal(fs.pread, handle, 3, 1000) == f"{file}: ends at byte 100"
        assert handle.tell() == 0


def test_pread_goes_on_after_a_short_read(file, monkeypatch):
    real = os.pread
    monkeypatch.setattr(os, "pread", lambda fd, size, offset: real(fd, min(size, 7), offset))
    with fs.open_read(file) as handle:
        assert fs.pread(handle, 50, 10) == bytes(range(10, 60))


def test_small_questions(tmp_path, file):
    assert fs.exists(file)
    assert not fs.exists(tmp_path / "none")
    assert fs.is_dir(tmp_path)
    assert not fs.is_dir(file)
    assert fs.size(file) == 100
    assert fs.stamp(file) == (100, file.stat().st_mtime_ns)
    assert fs.sha256(file) == hashlib.sha256(bytes(range(100))).hexdigest()
    assert fs.free_bytes(tmp_path / "not" / "made" / "yet") > 0
    (tmp_path / "a").touch()
    assert fs.list_dir(tmp_path) == [tmp_path / "a", file]


# Writing ------------------------------------------------------------------------------------------


def test_a_hashing_file_hashes_what_it_writes(tmp_path):
    with fs.HashingFile.create(tmp_path / "a") as file:
        assert file.write(b"one") == 3
        assert file.write(memoryview(bytearray(b"two "))) == 4
        assert file.write(b"") == 0
        assert file.write(memoryview(b"abcd").cast("I")) == 4
        assert file.tell() == file.size == 11
    assert (tmp_path / "a").read_bytes() == b"onetwo abcd"
    assert file.sha256 == fs.sha256(tmp_path / "a")
    with pytest.raises(FileExistsError):
        fs.HashingFile(tmp_path / "a")


class Failing(fs.Disk):
    """Fails once in one operation, and counts flushes."""

    def __init__(self, operation: str) -> None:
        self.operation: str | None = operation
        self.flushes = 0

    def write(self, fd: int, data: memoryview) -> None:
        self._fail("write")
        super().write(fd, data)

    def fsync(self, fd: int) -> None:
        self.flushes += 1
        self._fail("fsync")
        super().fsync(fd)

    def _fail(self, operation: str) -> None:
        if operation == self.operation:
            self.operation = None
            raise OSError(errno.EIO, "Input/output error")


def _write_and_close(file: fs.HashingFile) -> None:
    file.write(b"x")
    file.close()


@pytest.mark.parametrize(("operation", "flushes"), [("write", 0), ("fsync", 1)])
def test_after_an_error_a_file_is_never_flushed_again(tmp_path, operation, flushes):
    """The kernel reports a failed write-back once and then calls the file clean."""
    disk = Failing(operation)
    with fs.using(disk):
        file = fs.HashingFile(tmp_path / "a")
        with pytest.raises(OSError, match="Input/output"):
            _write_and_close(file)
        for use in (file.close, lambda: file.write(b"y")):
            with pytest.raises(OSError, match="an earlier write failed"):
                use()
        file.drop()
    assert disk.flushes == flushes


def test_a_body_that_raises_drops_the_file_without_a_flush(tmp_path):
    disk = Failing("none")
    with (
        fs.using(disk),
        pytest.raises(ZeroDivisionError),
        fs.HashingFile(tmp_path / "a") as file,
    ):
        file.write(bytes(1 // 0))
    assert disk.flushes == 0
    with pytest.raises(OSError, match="closed"):
        file.write(b"x")


def test_write_atomic_replaces_and_leaves_nothing_else(tmp_path):
    fs.write_atomic(tmp_path / "a", b"1")
    fs.write_atomic(tmp_path / "a", "σ")
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("a", "σ".encode())]


def test_append_adds_whole_lines(tmp_path):
    for line in (b"1\n", b"2\n"):
        fs.append(tmp_path / "metrics.jsonl", line)
    assert (tmp_path / "metrics.jsonl").read_bytes() == b"1\n2\n"


def test_errors_of_writing_are_the_system_s_own(tmp_path):
    with pytest.raises(FileNotFoundError):
        fs.write_atomic(tmp_path / "none" / "a", b"")
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        fs.make_dir(tmp_path / "file")
    with pytest.raises(NotADirectoryError):
        fs.make_dir(tmp_path / "file" / "sub")


def test_folders_are_made_with_their_parents_and_removed_with_their_content(tmp_path):
    fs.make_dir(tmp_path / "a" / "b")
    fs.make_dir(tmp_path / "a" / "b")
    (tmp_path / "a" / "b" / "file").touch()
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").touch()
    (tmp_path / "a" / "link").symlink_to(tmp_path / "kept")
    fs.remove_tree(tmp_path / "a")
    fs.remove_tree(tmp_path / "a")
    fs.remove_file(tmp_path / "a")
    assert [p.name for p in tmp_path.rglob("*")] == ["kept", "file"]


def test_the_probe_says_why_a_folder_cannot_be_written(tmp_path):
    fs.check_writable(tmp_path / "run")
    assert list((tmp_path / "run").iterdir()) == []

    class ReadOnly(fs.Disk):
        def create(self, path: Path) -> int:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    with fs.using(ReadOnly()):
        text = refusal(fs.check_writable, tmp_path)
    assert text == f"{tmp_path}: cannot write (Read-only file system)"

    class NoRename(fs.Disk):
        def rename(self, old: Path, new: Path) -> None:
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    with fs.using(NoRename()):
        assert "cannot write (Operation not permitted)" in refusal(fs.check_writable, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_full_device_is_reported_with_its_number(tmp_path):
    """A real disk error, not an invented one: /dev/full refuses every write."""
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")

    class Full(fs.Disk):
        def create(self, path: Path) -> int:
            super().close(super().create(path))
            return os.open("/dev/full", os.O_WRONLY)

    with fs.using(Full()), pytest.raises(OSError, match="No space") as info:
        fs.write_atomic(tmp_path / "a", b"x")
    assert info.value.errno == errno.ENOSPC
    assert list(tmp_path.iterdir()) == []


def test_what_runs_before_the_heavy_imports_is_light():
    names = ("fs", "failpoints", "folder", "status", "lock", "signals")
    code = f"import sys; from lit_restore.io import {', '.join(names)}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "numpy", "lightning"} & set(done.stdout.split())


def test_only_the_seam_changes_the_disk():
    """Everything in fs that writes goes through `current()`, so the simulator sees all of it."""
    source = Path(fs.__file__).read_text()
    assert not re.findall(r"os\.(write|fsync|rename|replace|unlink|remove|mkdir|rmdir)\(", source)
