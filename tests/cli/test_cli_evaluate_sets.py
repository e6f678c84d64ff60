"""`evaluate.py sets` as its users meet it: what is a set, numbers, tables, one-line errors."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import encoded, write_tar
from support_evaluation import run

from lit_restore.errors import UserError
from lit_restore.evaluation import sets as sets_module
from lit_restore.evaluation.features import FIDInception, PixelFeatures
from lit_restore.evaluation.frechet import Moments, frechet_distance
from lit_restore.evaluation.set_pictures import open_set
from lit_restore.evaluation.set_table import SetLine, make_table, plain_text
from lit_restore.evaluation.sets import SetsOptions, compare_sets
from lit_restore.networks.inception import FIDInceptionV3

PIXELS = ["--features", "pixels"]


def drawn(count: int, *, seed: int = 0, side: int = 8) -> np.ndarray:
    """(count, side, side, 3) random pictures."""
    levels = np.random.default_rng(seed).integers(0, 256, (count, side, side, 3))
    return levels.astype(np.uint8)


def folder(path: Path, pixels: np.ndarray) -> Path:
    """Picture files, some of them in a folder further down."""
    for k, row in enumerate(pixels):
        file = path / ("sub" if k % 2 else "") / f"{k:03d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(encoded(row))
    return path


def shards(path: Path, pixels: np.ndarray) -> Path:
    path.mkdir()
    for shard in range(2):
        half = list(enumerate(pixels))[shard::2]
        write_tar(path / f"a-{shard}.tar", [(f"{k:03d}.png", encoded(row)) for k, row in half])
    return path


def array(path: Path, pixels: np.ndarray, **others: np.ndarray) -> Path:
    np.savez(path, arr_0=pixels, **others)
    return path


def packed(path: Path, pixels: np.ndarray) -> Path:
    np.savez_compressed(path, arr_0=pixels)
    return path


def samples(path: Path, pixels: np.ndarray) -> Path:
    """As `lit-restore sample` leaves it: the grid is no sample."""
    folder(path / "images", pixels)
    (path / "grid.png").write_bytes(encoded(np.zeros((20, 20, 3), np.uint8)))
    (path / "samples.json").write_text(json.dumps({"complete": True}))
    return path


KINDS: dict[str, tuple[Callable[[Path, np.ndarray], Path], str]] = {
    "pictures": (folder, "x"),
    "shards": (shards, "x"),
    "array": (array, "x.npz"),
    "compressed array": (packed, "x.npz"),
    "samples": (samples, "x"),
}


def result(out: Path) -> dict:
    return json.loads((out / "sets.json").read_text())


def error_of(capsys: pytest.CaptureFixture[str], *words: str | Path) -> str:
    capsys.readouterr()
    assert run("sets", *words) == 2
    printed = capsys.readouterr()
    assert printed.err.count("\n") == 1, printed.err
    assert printed.out == ""
    return printed.err.removeprefix("error: ").rstrip("\n")


# Sets ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_set_holds_the_same_pictures(kind: str, tmp_path: Path) -> None:
    pixels = drawn(10)
    make, name = KINDS[kind]
    held = open_set(str(make(tmp_path / name, pixels)), option="--real")
    assert held.kind == kind.split()[-1]
    assert held.size == len(pixels)
    found = sorted(held.read(k).tobytes() for k in range(held.size))
    assert found == sorted(row.tobytes() for row in pixels)


def test_grey_and_deep_pictures_become_eight_bits_of_three_channels(tmp_path: Path) -> None:
    grey = drawn(1)[0, :, :, 0]
    (tmp_path / "a.png").write_bytes(encoded(grey))
    from PIL import Image

    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "b.png")
    held = open_set(str(tmp_path), option="--real")
    for k in range(2):
        np.testing.assert_array_equal(held.read(k), np.repeat(grey[..., None], 3, axis=2))


def test_count_draws_from_the_whole_set_and_by_the_seed(tmp_path: Path) -> None:
    held = open_set(str(array(tmp_path / "x.npz", drawn(40))), option="--real")
    chosen = held.draw(10, 0)
    assert chosen == held.draw(10, 0) == sorted(set(chosen))
    assert len(chosen) == 10
    assert chosen != held.draw(10, 1)
    assert max(chosen) >= 20  # sets may be sorted by class
    assert held.draw(None, 0) == held.draw(40, 5) == list(range(40))


# Numbers ------------------------------------------------------------------------------------------


def test_numbers_are_those_of_the_definitions_and_a_set_is_itself(tmp_path: Path) -> None:
    real, fake = drawn(30), drawn(30, seed=1) // 2
    sides = [folder(tmp_path / "real", real), array(tmp_path / "f.npz", fake)]
    words = ["--real", sides[0], "--fake", sides[1], "--fake", f"same={sides[0]}"]
    assert run("sets", *words, *PIXELS, "--out", tmp_path / "out") == 0
    other, same = result(tmp_path / "out")["results"]
    # 8x8 pictures are their own means.
    flat = [torch.from_numpy(x.transpose(0, 3, 1, 2).reshape(30, -1)) / 255 for x in (real, fake)]
    expected = frechet_distance(*(Moments.of(x.float()) for x in flat))
    assert other["values"]["fd"] == pytest.approx(expected, rel=1e-5)
    assert same["values"]["fd"] == pytest.approx(0, abs=1e-5)
    assert (same["values"]["precision"], same["values"]["recall"]) == (1, 1)
    assert (other["real"], other["fake"], other["name"]) == (30, 30, "f.npz")
    (row,) = [r for r in csv.reader((tmp_path / "out" / "table.csv").open()) if r[0] == "f.npz"]
    assert float(row[1]) == other["values"]["fd"]


def test_size_and_order_of_batches_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mixed = folder(tmp_path / "mixed", drawn(40))
    folder(mixed / "wide", drawn(20, seed=2, side=16))
    other = array(tmp_path / "o.npz", drawn(40, seed=3))
    options = SetsOptions(real=str(mixed), fakes=(str(other),), features="pixels", count=36)
    whole = compare_sets(options).table.lines[0]
    monkeypatch.setattr("lit_restore.evaluation.set_reader._BATCH", 3)
    monkeypatch.setattr("lit_restore.evaluation.set_reader._HELD", 2000)
    parts = compare_sets(options).table.lines[0]
    assert parts.real == whole.real == 36
    for metric, value in whole.values.items():
        assert parts.values[metric] == pytest.approx(value, rel=1e-4, abs=1e-6)


# Tables -------------------------------------------------------------------------------------------


def test_table_says_what_it_is_about(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = array(tmp_path / "a.npz", drawn(20), mu=np.zeros(3))
    b = samples(tmp_path / "b", drawn(12, seed=1, side=16))
    (b / "samples.json").write_text(json.dumps({"complete": False}))
    out = tmp_path / "out"
    words = ["--real", a, "--fake", f"ours={b}", *PIXELS, "--count", "10", "--out", out]
    assert run("sets", *words, "--metrics", "fd,coverage") == 0
    printed = " ".join(capsys.readouterr().out.split())
    for told in (
        "features: pixels-8x8-mean; 192 numbers a picture",
        "10 of 20",
        "10 of 12",
        "drawn at random with seed 0",
        "ours is not complete",
        "(mu, sigma) stored in a.npz are not used",
        "pictures of ours are 16x16, real ones 8x8",
        "10 pictures are no more than the 192 features",
        result(out)["run_id"],
    ):
        assert told in printed, told
    head = (out / "table.md").read_text().splitlines()[0]
    assert head == ("| set | FD[pixels-8x8-mean] | coverage[pixels-8x8-mean] | N real | N fake |")
    assert sorted(path.name for path in out.iterdir()) == ["sets.json", "table.csv", "table.md"]
    for path in out.iterdir():
        assert "fid" not in path.read_text().lower()


def line(name: str, count: int) -> SetLine:
    values = {"fd": float(count)}
    return SetLine(
        name=name, real=count, of_real=count, fake=count, of_fake=count, values=values, blanks={}
    )


def test_fid_stands_only_below_a_head_of_its_own_count() -> None:
    with torch.device("meta"):
        network = FIDInception(FIDInceptionV3(), digest=FIDInception.published)
    table = make_table(network, ["fd"], [line("many", 20_000), line("few", 5000)])
    assert [title for _, title in table.columns] == ["FID", "FID@5000"]
    rows = [
        row.split() for row in plain_text(table).splitlines() if row.startswith(("many", "few"))
    ]
    assert rows == [["many", "20000", "–", "20000", "20000"], ["few", "–", "5000", "5000", "5000"]]


def test_a_metric_that_needs_more_pictures_is_blank_with_its_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a = array(tmp_path / "a.npz", drawn(4))
    assert run("sets", "--real", a, "--fake", a, *PIXELS) == 0
    printed = capsys.readouterr().out
    assert "precision of a.npz: needs 6 images of each kind" in printed
    assert "–" in printed


# Errors -------------------------------------------------------------------------------------------


def test_damaged_pictures_are_named_and_end_it_unless_allowed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    real = array(tmp_path / "a.npz", drawn(12))
    fake = folder(tmp_path / "f", drawn(12))
    broken = fake / "004.png"
    broken.write_bytes(broken.read_bytes()[:60])
    (fake / "006.png").write_bytes(b"oops")
    out = tmp_path / "out"
    words = ["--real", real, "--fake", fake, *PIXELS]
    message = error_of(capsys, *words, "--out", out)
    assert message.startswith(f"{broken}: ")
    assert message.endswith("more than --max_bad 0")
    message = error_of(capsys, *words, "--max_bad", "1")
    assert message.startswith(f"{fake / '006.png'}: ")
    assert message.endswith("2 damaged, more than --max_bad 1")
    capsys.readouterr()
    assert run("sets", *words, "--max_bad", "2", "--out", out) == 3
    printed = capsys.readouterr()
    assert printed.err.count("failed: ") == 2
    assert result(out)["results"][0]["fake"] == 10
    assert f"left out: {broken}" in (out / "table.md").read_text()


class Whole(PixelFeatures):
    """Features that resize nothing."""

    kind = "whole"

    def prepare(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels


def test_sizes_may_differ_only_where_the_features_resize(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sets_module, "open_features", lambda spec: Whole())
    a, b = (array(tmp_path / f"{s}.npz", drawn(8, side=s)) for s in (8, 10))
    with pytest.raises(UserError, match=r"10.npz: arr_0\[0\]: is 10x10 where others are 8x8"):
        compare_sets(SetsOptions(real=str(a), fakes=(str(b),), features="whole"))


WRONG: dict[str, tuple[list[str], str]] = {
    "features": (
        ["--features", "pixel"],
        "pixel: no such features; did you mean pixels?",
    ),
    "no file": (["--features", "squeezenet"], "needs a file of weights"),
    "metric": (["--metrics", "fid"], "--metrics fid: no such metric of sets; there are fd,"),
    "no metric": (["--metrics", ","], "--metrics: is empty; there are fd,"),
    "count": (["--count", "13"], "--count 13: {a} holds 12; lower it"),
    "no count": (["--count", "0"], "--count: 0 is below 1"),
    "bad": (["--max_bad", "-1"], "--max_bad: -1 is below 0"),
    "colour": (["--background", "whitish"], "whitish is not a colour"),
    "missing": (["--fake", "{a}x"], "{a}x: no such file; did you mean a.npz?"),
    "one picture": (["--fake", "{picture}"], "is one picture; --fake takes its folder"),
    "empty": (["--fake", "{empty}"], "empty: holds no pictures"),
    "floats": (["--fake", "{floats}"], "floats.npz: float32 are no levels 0 to 255"),
    "unnamed": (["--fake", "{unnamed}"], "arr_0"),
    "twice": (["--fake", "{a}"], "--fake: two are called a.npz; name them: NAME=PATH"),
    "nothing": (["--fake", ""], "argument --fake: is empty"),
    "out is a file": (["--out", "{a}"], "is a file; --out names a folder"),
    "out is taken": (["--out", "{pictures}"], "pictures: holds other things; choose another --out"),
    "out is done": (["--out", "{done}"], "done: exists; choose another --out"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_one_line_and_leaves_nothing(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pixels = drawn(12)
    places = {name: tmp_path / name for name in ("empty", "pictures", "done")}
    places["a"] = array(tmp_path / "a.npz", pixels)
    places["picture"] = folder(places["pictures"], pixels[:1]) / "000.png"
    places["floats"] = array(tmp_path / "floats.npz", pixels.astype(np.float32))
    places["unnamed"] = tmp_path / "unnamed.npz"
    np.savez(places["unnamed"], images=pixels)
    for name in ("empty", "done"):
        places[name].mkdir()
    (places["done"] / "sets.json").write_text("{}")
    before = sorted(tmp_path.rglob("*"))
    words, message = WRONG[case]
    given = [word.format(**places) for word in words]
    base = ["--real", places["a"], "--fake", places["a"], *PIXELS]
    assert message.format(**places) in error_of(capsys, *base, *given)
    assert sorted(tmp_path.rglob("*")) == before
