"""Packing: the format, byte-reproducibility, resuming after kills."""

from __future__ import annotations

import os
import signal
import tarfile
from pathlib import Path

import numpy as np
import pytest
from conftest import encoded, picture, write_tar
from support_fork import fork, wait_all
from support_packing import contents, interrupt, pack, write_photos

from lit_restore.data.encode import Encoding
from lit_restore.data.inspection import verify
from lit_restore.data.manifest import read_manifest
from lit_restore.data.packing import write_shards
from lit_restore.data.sources import (
    class_folders,
    folder_of_images,
)
from lit_restore.errors import SaveError, UserError
from lit_restore.io import disk


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return write_photos(tmp_path / "photos")


def test_files_keep_their_bytes_under_safe_keys(photos: Path, tmp_path: Path) -> None:
    manifest = pack(photos, tmp_path / "out")
    stored = {}
    for shard in manifest.shards:
        with tarfile.open(tmp_path / "out" / shard.name) as tar:
            for member in tar:
                stored[member.name] = tar.extractfile(member).read()  # type: ignore[union-attr]
                assert (member.mtime, member.uid, member.gid, member.mode) == (0, 0, 0, 0o644)
                assert (member.uname, member.gname) == ("", "")
    assert len(stored) == manifest.count == 9
    assert stored["sea__é_1_x.jpg"] == (photos / "sea" / "é 1.x.jpg").read_bytes()


def test_the_webdataset_library_reads_what_we_write(photos: Path, tmp_path: Path) -> None:
    import webdataset as wds

    classes = class_folders(photos)
    write_shards(classes, tmp_path / "out", per_shard=4, progress=False)
    urls = [str(path) for path in sorted((tmp_path / "out").glob("*.tar"))]
    samples = list(wds.WebDataset(urls, shardshuffle=False).decode("rgb8"))
    assert len(samples) == 9
    for sample in samples:
        kind = next(k for k in ("png", "jpg", "webp") if k in sample)
        assert np.asarray(sample[kind]).shape == (40, 48, 3) or kind == "webp"
        assert sample["cls"] == int(sample["__key__"].startswith("sea"))


def test_equal_input_gives_equal_bytes_for_any_number_of_workers(
    photos: Path, tmp_path: Path
) -> None:
    pack(photos, tmp_path / "one")
    pack(photos, tmp_path / "three", workers=3)
    for path in photos.rglob("*.*"):
        os.utime(path, (1, 1))  # copied at another time
    pack(photos, tmp_path / "later")
    assert (
        contents(tmp_path / "one") == contents(tmp_path / "three") == contents(tmp_path / "later")
    )


def test_shuffling_is_by_key_and_keeps_every_sample(photos: Path) -> None:
    plain = folder_of_images(photos)
    mixed = plain.shuffled()
    assert sorted(i.key for i in plain.items) == [i.key for i in plain.items]
    assert sorted(i.key for i in mixed.items) == sorted(i.key for i in plain.items)
    assert [i.key for i in mixed.items] != [i.key for i in plain.items]


class Killer(disk.Disk):
    """Ends the process, as a power cut would, before the n-th change of the disk."""

    def __init__(self, at: int) -> None:
        self.left = at

    def _count(self) -> None:
        self.left -= 1
        if self.left < 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def create(self, path: Path) -> int:
        self._count()
        return super().create(path)

    def write(self, fd: int, data: memoryview) -> None:
        self._count()
        super().write(fd, data)

    def rename(self, old: Path, new: Path) -> None:
        self._count()
        super().rename(old, new)

    def unlink(self, path: Path) -> None:
        self._count()
        super().unlink(path)


def test_killed_before_any_operation_a_second_run_gives_the_same_bytes(
    photos: Path, tmp_path: Path
) -> None:
    pack(photos, tmp_path / "whole")
    expected = contents(tmp_path / "whole")
    killed = kept = 0
    for at in range(100):
        out = tmp_path / f"killed{at}"

        def make(at: int = at, out: Path = out) -> int:
            with disk.using(Killer(at)):
                pack(photos, out)
            return 0

        code = wait_all([fork(make, env={}, output=tmp_path / "log")], 60)[0]
        if code == 0:
            break
        assert code == -signal.SIGKILL
        killed += 1
        if not (out / "manifest.json").exists():
            with pytest.raises(UserError, match=r"unfinished|no manifest"):  # never finished
                read_manifest(out)
        kept += any(out.glob("train-*.tar"))
        pack(photos, out)
        assert contents(out) == expected
    assert killed > 20
    assert kept > 10


def test_finished_shards_are_kept_and_not_packed_again(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    interrupt(photos, out, after=4)
    before = {path.name: path.stat().st_ino for path in out.glob("*.tar")}
    assert before
    assert not list(out.glob("tmp-*"))
    pack(photos, out)
    after = {path.name: path.stat().st_ino for path in out.glob("*.tar")}
    assert before.items() <= after.items()
    assert len(after) == 5


@pytest.mark.parametrize("change", ["touch", "grow", "options"])
def test_an_unfinished_folder_is_not_gone_on_with_from_other_input(
    photos: Path, tmp_path: Path, change: str
) -> None:
    out = tmp_path / "out"
    interrupt(photos, out, after=4)
    encoding = Encoding(encode="png" if change == "options" else "keep")
    if change == "touch":
        os.utime(photos / "sea" / "é 1.x.jpg", (5, 5))
    if change == "grow":
        (photos / "new.png").write_bytes(encoded(picture(99)))
    before = contents(out)
    with pytest.raises(UserError, match="unfinished shards of other input or options"):
        pack(photos, out, encoding=encoding)
    assert contents(out) == before


def test_a_finished_folder_is_done_for_its_plan_and_refuses_another(
    photos: Path, tmp_path: Path
) -> None:
    manifest = pack(photos, tmp_path / "out")
    assert pack(photos, tmp_path / "out") == manifest
    with pytest.raises(UserError, match="other input or options"):
        pack(photos, tmp_path / "out", encoding=Encoding(encode="png"))


def test_foreign_shards_are_left_alone(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    write_tar(tmp_path / "out" / "mine.tar", [("a.png", encoded(picture(0)))])
    with pytest.raises(UserError, match=r"holds mine\.tar"):
        pack(photos, tmp_path / "out")


def test_a_full_disk_ends_with_code_74_and_leaves_no_draft(photos: Path, tmp_path: Path) -> None:
    class Full(disk.Disk):
        def fsync(self, fd: int) -> None:
            if len(list((tmp_path / "out").glob("*.tar"))) == 2:
                raise OSError(28, "No space left on device")
            super().fsync(fd)

    with disk.using(Full()), pytest.raises(SaveError, match="No space left on device") as error:
        pack(photos, tmp_path / "out")
    assert int(error.value.code) == 74
    assert not list((tmp_path / "out").glob("tmp-*"))
    pack(photos, tmp_path / "out")
    assert verify(tmp_path / "out", decode=True) == (9, [])


def test_an_interrupted_tiled_run_goes_on(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for k in range(6):
        (tmp_path / "in" / f"p-r{k}.png").write_bytes(encoded(picture(k)))
    tiles = Encoding(tile=20)
    interrupt(tmp_path / "in", tmp_path / "out", after=4, encoding=tiles)
    assert list((tmp_path / "out").glob("*.tar"))
    pack(tmp_path / "in", tmp_path / "out", encoding=tiles)
    pack(tmp_path / "in", tmp_path / "whole", encoding=tiles)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
