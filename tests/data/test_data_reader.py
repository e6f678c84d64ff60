"""Shards read by byte range: index, fields, refusals."""

from __future__ import annotations

import io
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import encoded, picture, write_tar
from PIL import Image

from lit_restore.data.locate import open_source
from lit_restore.data.reader import CachedSource, ShardSource, open_shards
from lit_restore.errors import UserError

Make = Callable[..., Path]


def test_every_sample_reads_as_pillow_decodes_it(make_shards: Make) -> None:
    folder = make_shards([3, 2])
    source = open_source(str(folder), key="data.train")
    assert len(source) == 5
    for index in range(5):
        expected = picture(index, 40, 48)
        np.testing.assert_array_equal(source.read(index).image, expected)
    assert source.key(3) == "train-0001/00003"


def test_jpeg_decodes_within_one_level_of_pillow(make_shards: Make) -> None:
    folder = make_shards([2], kind="jpg")
    source = open_source(str(folder), key="data.train")
    with tarfile.open(folder / "train-0000.tar") as tar:
        data = tar.extractfile("00001.jpg")
        assert data is not None
        expected = np.asarray(Image.open(io.BytesIO(data.read()))).astype(int)
    assert np.abs(source.read(1).image.astype(int) - expected).max() <= 1


def test_fields_are_told_by_extension(tmp_path: Path) -> None:
    array = np.arange(6, dtype=np.float16).reshape(2, 3)
    npy = io.BytesIO()
    np.save(npy, array)
    members = [
        ("a.image.png", encoded(picture(0))),
        ("a.degraded.png", encoded(picture(1))),
        ("a.cls", b"7"),
        ("a.npy", npy.getvalue()),
        ("a.json", b"{}"),
    ]
    source = open_shards([write_tar(tmp_path / "x.tar", members)])
    sample = source.read(0)
    np.testing.assert_array_equal(sample.image, picture(0))
    assert sample.degraded is not None
    np.testing.assert_array_equal(sample.degraded, picture(1))
    assert sample.label == 7
    assert sample.array is not None
    np.testing.assert_array_equal(sample.array, array)


def test_a_source_survives_pickling_without_its_open_files(make_shards: Make) -> None:
    source = open_source(str(make_shards([2])), key="data.train")
    before = source.read(1).image
    assert isinstance(source, ShardSource)
    again = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(again.read(1).image, before)


def test_a_cache_changes_nothing_but_what_is_read_again(make_shards: Make) -> None:
    source = open_source(str(make_shards([4])), key="data.train")
    size = source.read(0).nbytes
    reads: list[int] = []
    plain = source.read
    source.read = lambda index: (reads.append(index), plain(index))[1]  # type: ignore[method-assign]
    cached = CachedSource(source, megabytes=1)
    cached.limit = 2 * size
    for index in (0, 1, 0, 2, 0, 1):
        np.testing.assert_array_equal(cached.read(index).image, plain(index).image)
    assert reads == [0, 1, 2, 1], "the two read last are kept"
    assert cached.fingerprint() == source.fingerprint()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda tmp: "nowhere", ["data.train", "no such shard", "shards make"]),
        (lambda tmp: str(tmp), ["data.train", "holds no shard"]),
        (lambda tmp: "https://[host/x.tar", ["data.train", "not a URL"]),
        (lambda tmp: "pipe:cat x.tar", ["data.train", "streamed"]),
        (lambda tmp: str(write_tar(tmp / "n.tar", [("a.txt", b"x")])), ["n.tar", "no sample"]),
    ],
)
def test_what_is_no_data_set_is_one_line(
    tmp_path: Path, make: Callable[[Path], str], words: list[str]
) -> None:
    with pytest.raises(UserError) as error:
        open_source(make(tmp_path), key="data.train")
    assert all(word in str(error.value) for word in words), str(error.value)


def test_shards_of_different_kinds_are_refused(tmp_path: Path) -> None:
    one = write_tar(tmp_path / "a.tar", [("a.png", encoded(picture(0)))])
    two = write_tar(tmp_path / "b.tar", [("b.png", encoded(picture(0))), ("b.cls", b"1")])
    with pytest.raises(UserError, match=r"b\.tar.*image, label where a\.tar holds image"):
        open_shards([one, two])
