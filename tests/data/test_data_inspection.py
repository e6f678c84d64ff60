"""Manifests, `shards inspect` and `shards verify` on whole and damaged folders."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import encoded, picture, write_tar
from PIL import Image
from support_packing import pack, write_photos

from lit_restore.data.inspection import summarise, verify
from lit_restore.data.manifest import manifest_text, read_manifest
from lit_restore.errors import UserError
from lit_restore.io import fs


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return write_photos(tmp_path / "photos")


def damaged(folder: Path, **changes: object) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda f: (f / "train-000003.tar").unlink(), "1 of 5 shards missing, first train-000003"),
        (lambda f: (f / "train-000001.tar").write_bytes(b"x"), "train-000001.tar: has 1 byte"),
        (lambda f: (f / "manifest.json").write_text("{"), "not JSON"),
        (lambda f: (f / "manifest.json").write_text("[" * 99999), "not JSON"),
        (lambda f: (f / "manifest.json").write_text("[]"), "not a manifest"),
        (lambda f: (f / "manifest.json").unlink(), "no manifest.json"),
        (lambda f: damaged(f, format=9), "manifest format 9"),
        (lambda f: damaged(f, count=4), "9 samples in the shards, count says 4"),
        (lambda f: damaged(f, count=True), '"count" is not a whole number'),
        (lambda f: damaged(f, shards=[]), "lists no shards"),
        (lambda f: damaged(f, shards=[{"name": "../x.tar", "sha256": ""}]), "refused .name."),
        (lambda f: damaged(f, shards=[{"name": "x.tar", "sha256": "z"}]), "sha256 is not"),
        (lambda f: damaged(f, shards=7), "lists no shards"),
        (lambda f: damaged(f, shards=[7]), "no object"),
        (lambda f: damaged(f, classes=[1]), '"classes" is not a list of texts'),
    ],
)
def test_a_damaged_folder_is_one_line(
    photos: Path, tmp_path: Path, spoil: Callable[[Path], object], words: str
) -> None:
    pack(photos, tmp_path / "out")
    assert read_manifest(tmp_path / "out").count == 9  # the twin that loads
    spoil(tmp_path / "out")
    with pytest.raises(UserError, match=words):
        read_manifest(tmp_path / "out")


def test_a_manifest_reads_as_it_was_written(photos: Path, tmp_path: Path) -> None:
    manifest = pack(photos, tmp_path / "out")
    assert read_manifest(tmp_path / "out") == manifest
    assert (tmp_path / "out" / "manifest.json").read_text() == manifest_text(manifest)


def test_an_unfinished_folder_says_how_to_go_on(tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text("{}")
    with pytest.raises(UserError, match="run the same command again"):
        read_manifest(tmp_path)


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def test_verify_finds_a_flipped_bit_a_lost_shard_and_a_wrong_count(
    photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    pack(photos, out)
    assert verify(out, decode=True) == (9, [])
    flip(out / "train-000000.tar", 600)
    (out / "train-000001.tar").unlink()
    write_tar(out / "train-000002.tar", [("a.png", encoded(picture(0)))])
    told = " ".join(str(error) for error in verify(out, decode=False)[1])
    assert "train-000000.tar: sha256 differs" in told
    assert "train-000001.tar: no such file" in told
    assert "train-000002.tar: 1 samples, manifest says 2" in told


def test_verify_decodes_only_when_asked(tmp_path: Path) -> None:
    good, name = encoded(picture(0), "jpg"), tmp_path / "s.tar"
    write_tar(name, [("a.jpg", good), ("b.jpg", good[:-200]), ("c.cls", b"x"), ("c.jpg", good)])
    assert len(verify(name, decode=False)[1]) == 1  # the label that others have not
    told = " ".join(str(error) for error in verify(name, decode=True)[1])
    assert "b: not a readable JPEG" in told
    assert 'c: label "x" is not a number' in told


def test_a_summary_tells_counts_formats_and_sizes(tmp_path: Path) -> None:
    big = io.BytesIO()  # a header that ends past the first read
    Image.fromarray(picture(1, 64, 80)).save(big, "JPEG", comment=b"x" * 60000, exif=b"y" * 60000)
    members = [("a.png", encoded(picture(0, 20, 30))), ("a.cls", b"1"), ("b.jpg", big.getvalue())]
    found = summarise(write_tar(tmp_path / "s.tar", members))
    assert (found.shards, found.samples, found.headers) == (1, 2, 2)
    assert found.fields == {"image": 2, "label": 1}
    assert found.formats == {"PNG 8 bits x 3": 1, "JPEG 8 bits x 3": 1}
    assert (found.widths, found.heights) == ((30, 80, 80), (20, 64, 64))
    assert found.keys == ("a", "b")


FIXTURE = Path(__file__).parents[2] / "data" / "fixture"


def test_the_fixture_is_whole_and_small(tmp_path: Path) -> None:
    copied = shutil.copytree(FIXTURE, tmp_path / "fixture")  # indices are kept beside shards
    assert verify(copied, decode=True) == (16, [])
    assert sum(fs.size(path) for path in FIXTURE.iterdir() if path.is_file()) <= 200_000
