"""Let the k-th operation on the disk fail, for every k, until a save passes without meeting it.

Whatever fails, and however often: a verified save is left, and the next start finds a clean folder.
Source: SQLite's I/O error tests; reliability §2.1.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import math
import os
import re
import shutil
from pathlib import Path

import pytest

from lit_restore.errors import UserError
from lit_restore.io import folder, fs

STEP = re.compile(r"step-\d+")
ONE = {"network.safetensors": b"weights of save 1", "state.json": b"1"}
TWO = {"network.safetensors": b"weights of save two", "state.json": b"22"}


class KilledError(BaseException):
    """The process ends here: nothing after it reaches the disk."""


class Faulty(fs.Disk):
    """A disk of which `times` operations fail, the k-th (from 1) and those after it."""

    def __init__(self, k: int, fault: int | None, times: float = 1) -> None:
        self.k, self.fault = k, fault
        self.end = k + (times if fault is not None else math.inf)
        self.calls = 0
        self.spoilt: set[int] = set()

    @property
    def met(self) -> bool:
        return self.calls >= self.k

    def _fails(self) -> bool:
        self.calls += 1
        return self.k <= self.calls < self.end

    def _fail(self) -> None:
        if self.fault is None:
            raise KilledError
        raise OSError(self.fault, os.strerror(self.fault))

    def _pass(self) -> None:
        if self._fails():
            self._fail()

    def create(self, path: Path) -> int:
        self._pass()
        fd = super().create(path)
        self.spoilt.discard(fd)
        return fd

    def write(self, fd: int, data: memoryview) -> None:
        if self._fails():
            super().write(fd, data[: len(data) // 2])
            self.spoilt.add(fd)
            self._fail()
        super().write(fd, data)

    def fsync(self, fd: int) -> None:
        assert fd not in self.spoilt, "the kernel reports an error once: never flush it again"
        if self._fails():
            self.spoilt.add(fd)
            self._fail()
        super().fsync(fd)

    def close(self, fd: int) -> None:
        super().close(fd)
        self._pass()

    def rename(self, old: Path, new: Path) -> None:
        self._pass()
        super().rename(old, new)

    def unlink(self, path: Path) -> None:
        self._pass()
        super().unlink(path)

    def mkdir(self, path: Path) -> None:
        self._pass()
        super().mkdir(path)

    def rmdir(self, path: Path) -> None:
        self._pass()
        super().rmdir(path)

    def fsync_dir(self, path: Path) -> None:
        self._pass()
        super().fsync_dir(path)


def save(target: Path, content: dict[str, bytes]) -> None:
    draft = folder.Draft.begin(target)
    try:
        for name, data in content.items():
            draft.write(name, data)
        draft.publish()
    except BaseException:
        draft.abandon()
        raise


def save_then_drop(root: Path) -> None:
    """As a training does it: what is old goes only once the new one is acknowledged."""
    save(root / "step-2", TWO)
    folder.discard(root / "step-1")


def replace(root: Path) -> None:
    save(root / "step-1", TWO)


def careless(root: Path) -> None:
    """Negative control: the error of the save is swallowed."""
    with contextlib.suppress(OSError):
        save(root / "step-2", TWO)
    folder.discard(root / "step-1")


def too_early(root: Path) -> None:
    """Negative control: room is made before there is something new."""
    folder.discard(root / "step-1")
    save(root / "step-2", TWO)


def verified(root: Path) -> list[str]:
    good = []
    for path in folder.complete(root, STEP):
        with contextlib.suppress(UserError):
            folder.verify(path)
            good.append(path.name)
    return good


def run_all(root: Path, writer, fault: int | None, times: float, check) -> int:
    """Run `writer` with k = 1, 2, … until it passes; `check` after each. Returns the last k."""
    for k in itertools.count(1):
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir()
        save(root / "step-1", ONE)
        disk = Faulty(k, fault, times)
        error: BaseException | None = None
        try:
            with fs.using(disk):
                writer(root)
        except (OSError, KilledError) as caught:
            error = caught
        check(root, error)
        if not disk.met:
            return k
    raise AssertionError


FAULTS = {"eio": errno.EIO, "enospc": errno.ENOSPC, "kill": None}


@pytest.mark.parametrize("times", [1, 2, math.inf], ids=["once", "twice", "for ever"])
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("writer", [save_then_drop, replace])
def test_a_verified_save_is_left_and_the_next_start_is_clean(tmp_path, writer, fault, times):
    seen: list[BaseException | None] = []

    def check(root: Path, error: BaseException | None) -> None:
        seen.append(error)
        before = verified(root)
        folder.sweep(root)
        assert verified(root), "all saves are lost"
        assert set(before) <= set(verified(root))
        assert not [p.name for p in root.iterdir() if not STEP.fullmatch(p.name)]
        if error is None and writer is save_then_drop:
            assert verified(root) == ["step-2"]

    tries = run_all(tmp_path / "run", writer, FAULTS[fault], times, check)
    assert tries > 20
    # Only the last step of a replacement, removing what it replaced, may fail in silence.
    assert (seen.count(None) == 1) or (writer is replace and fault != "kill")


@pytest.mark.parametrize(
    ("writer", "times"), [(save_then_drop, 1), (save_then_drop, math.inf), (replace, 1)]
)
def test_an_error_leaves_a_verified_save_even_before_the_next_start(tmp_path, writer, times):
    """Training goes on after a failed save; one that was there stays readable all the time."""

    def check(root: Path, error: BaseException | None) -> None:
        assert verified(root), error

    run_all(tmp_path / "run", writer, errno.ENOSPC, times, check)


@pytest.mark.parametrize("writer", [careless, too_early])
def test_a_writer_without_care_is_caught(tmp_path, writer):
    lost = []

    def check(root: Path, error: BaseException | None) -> None:
        folder.sweep(root)
        lost.append(not verified(root))

    run_all(tmp_path / "run", writer, errno.EIO, 1, check)
    assert any(lost)


def test_a_rename_whose_reply_was_lost_is_a_success(tmp_path):
    """NFS repeats the call and reports that the old name is gone."""

    class LostReply(fs.Disk):
        def rename(self, old: Path, new: Path) -> None:
            super().rename(old, new)
            raise FileNotFoundError(errno.ENOENT, "no such file", str(old))

    save(tmp_path / "step-1", ONE)
    with fs.using(LostReply()):
        save_then_drop(tmp_path)
    assert verified(tmp_path) == ["step-2"]


def test_a_file_is_the_old_one_or_the_new_one_whatever_fails(tmp_path):
    path = tmp_path / "STATUS.json"
    for fault, times in itertools.product(FAULTS.values(), (1, math.inf)):
        for k in itertools.count(1):
            fs.write_atomic(path, "old")
            disk = Faulty(k, fault, times)
            with fs.using(disk), contextlib.suppress(OSError, KilledError):
                fs.write_atomic(path, "new")
            assert path.read_text() in ("old", "new")
            if times == 1 and fault is not None:
                assert list(tmp_path.iterdir()) == [path], "a failed write removes its draft"
            folder.sweep(tmp_path)
            assert list(tmp_path.iterdir()) == [path]
            if not disk.met:
                break
        assert path.read_text() == "new"
