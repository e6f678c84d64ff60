"""`lit-restore shards`: what a user types, and the one line and code that come back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import encoded, picture, write_tar
from support_packing import contents, write_photos

from lit_restore.cli.main import main
from lit_restore.data.locate import open_source
from lit_restore.io.lock import RunLock


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return write_photos(Path("photos"))


def shards(*words: str) -> int:
    return main(["shards", *words])


def test_make_inspect_and_verify_a_folder(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert shards("make", "photos", "--out", "out", "--per_shard", "4", "--workers", "2") == 0
    said = capsys.readouterr()
    assert said.out.startswith("out: 9 samples in 3 shards, ")
    assert "train-000002.tar: 1 samples (9 of 9)" in said.err  # stderr is no terminal here
    assert shards("inspect", "out") == 0
    rows = dict(line.split(None, 1) for line in capsys.readouterr().out.splitlines())
    assert rows["samples"].startswith("9 in 3 shards")
    assert rows["fields"] == "image"
    assert "3 JPEG 8 bits x 3" in rows["formats"]
    assert rows["width"] == "48 to 48, median 48"
    assert shards("verify", "out", "--decode") == 0
    assert capsys.readouterr().out == "out: 9 samples, all well\n"


def test_classes_are_named(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert shards("make", "photos", "--classes", "--out", "out", "--workers", "1") == 0
    assert shards("inspect", "out") == 0
    assert "classes     2: hill side, sea" in capsys.readouterr().out


def test_pairs_have_two_fields(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_photos(Path("clean"))
    assert shards("make", "photos", "--pairs", "clean", "--out", "out", "--workers", "1") == 0
    assert shards("inspect", "out/train-000000.tar") == 0
    assert "fields      degraded, image" in capsys.readouterr().out


def test_procedural_shards_do_not_depend_on_workers(photos: Path) -> None:
    options = ("make", "--procedural", "6", "--size", "32", "--seed", "3", "--per_shard", "4")
    assert shards(*options, "--out", "a", "--workers", "1") == 0
    assert shards(*options, "--out", "b", "--workers", "2") == 0
    assert contents(Path("a")) == contents(Path("b"))


def test_samples_are_shuffled_unless_sorted(photos: Path) -> None:
    for out, option in (("mixed", []), ("plain", ["--sorted"])):
        assert shards("make", "photos", "--out", out, "--workers", "1", *option) == 0
    keys = {}
    for out in ("mixed", "plain"):
        source = open_source(out, key="data.train")
        keys[out] = [source.key(k) for k in range(len(source))]
    assert keys["plain"] == sorted(keys["mixed"])
    assert keys["mixed"] != keys["plain"]


def test_a_finished_set_is_not_made_again(photos: Path) -> None:
    make = ("make", "photos", "--out", "out", "--workers", "1")
    assert shards(*make) == 0
    before = Path("out/train-000000.tar").stat().st_ino
    assert shards(*make) == 0
    assert Path("out/train-000000.tar").stat().st_ino == before


def spoil(text: str) -> None:
    Path("photos/sea/bad.png").write_bytes(text.encode())


def make_out() -> None:
    assert shards("make", "photos", "--out", "out", "--workers", "1") == 0


def save_array() -> None:
    np.save("rows.npy", np.zeros((2, 3), np.float32))


def cut_shard() -> None:
    make_out()
    path = Path("out/train-000000.tar")
    path.write_bytes(path.read_bytes()[:2000])


@pytest.mark.parametrize(
    ("prepare", "words", "line"),
    [
        (None, "make --out out", "make: give a folder or tar of pictures, or --procedural COUNT"),
        (None, "make nowhere --out out", "nowhere: no such folder"),
        (None, "make photos --procedural 3 --out out", "make: give a folder or tar of pictures"),
        (None, "make --procedural 3 --classes --out out", "--classes: not with --procedural"),
        (None, "make photos --classes --pairs photos --out out", "--classes: not with --pairs"),
        (None, "make photos --size 64 --out out", "--size: is of --procedural; pictures have --re"),
        (None, "make photos --seed 0 --out out", "--seed: is of --procedural; leave it out"),
        (save_array, "make rows.npy --encode png --out out", "--encode: arrays are stored as they"),
        (None, "make photos --per_shard 0 --out out", "per_shard: 0 is below 1"),
        (None, "make photos --tile 3 --out out", "tile: 3 is below 16"),
        (None, "make photos --workers 0 --out out", "workers: 0 is below 1"),
        (None, "make photos --pairs photos/sea --out out", "photos: pictures without a partner: "),
        (lambda: spoil("x"), "make photos --out out", "photos/sea/bad.png: not a readable JPEG"),
        (make_out, "make photos --out out --tile 16", "out: holds shards of other input"),
        (make_out, "make out --out other", "out: no JPEG, PNG or WebP pictures, nor arrays"),
        (None, "inspect photos", "photos: holds no shard (*.tar)"),
        (None, "inspect nowhere", "nowhere: no such file"),
        (None, "verify nowhere", "nowhere: no such file"),
        (cut_shard, "inspect out", "out/train-000000.tar: has 2.0 KB (2000), manifest says "),
    ],
)
def test_what_is_wrong_is_one_line_and_code_2(
    photos: Path,
    capsys: pytest.CaptureFixture[str],
    prepare: Callable[[], object] | None,
    words: str,
    line: str,
) -> None:
    if prepare is not None:
        prepare()
    capsys.readouterr()
    assert shards(*words.split()) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"error: {line}"), told
    assert told.count("\n") == 1


def test_verify_names_everything_that_is_bad(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cut_shard()
    capsys.readouterr()
    assert shards("verify", "out") == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "error: out/train-000000.tar: sha256 differs from the manifest"
    assert lines[-1].startswith("error: out: 2 errors")


def test_verify_decodes_a_single_shard(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = encoded(picture(0), "jpg")
    write_tar(Path("s.tar"), [("a.jpg", good), ("b.jpg", good[:-300])])
    assert shards("verify", "s.tar") == 0
    assert shards("verify", "s.tar", "--decode") == 2
    assert "error: s.tar: b: not a readable JPEG" in capsys.readouterr().err


def test_a_folder_in_use_is_refused(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with RunLock(Path("out")):
        assert shards("make", "photos", "--out", "out", "--workers", "1") == 2
    assert "error: out: in use by pid" in capsys.readouterr().err


def test_help_names_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as leaving:
        shards("make", "--help")
    assert leaving.value.code == 0
    text = capsys.readouterr().out
    options = (
        "out pairs classes array labels class_names pictures shape offsets procedural size seed "
        "per_shard tile resize pad encode max_bad sorted workers"
    )
    assert all(f"--{name} " in text or f"--{name}\n" in text for name in options.split())
