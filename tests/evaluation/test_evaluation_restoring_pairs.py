"""Pictures that are degraded already, as files or in shards; or even restored."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import encoded, picture, write_tar
from support_evaluation import pixels_of, write_pictures
from support_restoring import (
    HALF,
    evaluate,
    halved,
    hide_weights,
    networks,
    refusal,
    rows_of,
)

from lit_restore.cli.main import main
from lit_restore.data.locate import open_source
from lit_restore.diffusion.noise import sample_generators
from lit_restore.inverse import PosteriorOptions, sample_posterior
from lit_restore.io.quantise import from_pixels, to_uint8
from lit_restore.weights.fused import load_fusion

HEIGHT, WIDTH = 26, 30
KEYS = ("a", "sub/b")


@pytest.fixture(autouse=True)
def no_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hide_weights(tmp_path, monkeypatch)


@pytest.fixture(scope="module")
def fusion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return networks(tmp_path_factory.mktemp("made"))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_pictures(tmp_path / "data", ["a", "b/c", "d"], 20, 24)


# Files --------------------------------------------------------------------------------------------


def write_degraded(folder: Path, data: Path) -> Path:
    """What `HALF` makes of the pictures, as files."""
    for key in KEYS:
        path = folder / f"{key}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(to_uint8(halved(pixels_of(data / f"{key}.png")))[0]))
    return folder


def test_given_degraded_pictures_give_the_numbers_of_made_ones(
    fusion: Path, tmp_path: Path
) -> None:
    data = write_pictures(tmp_path / "data", list(KEYS), HEIGHT, WIDTH)
    degraded = write_degraded(tmp_path / "degraded", data)
    (degraded / "more.png").write_bytes(b"no partner, so nobody looks")
    words = ("--protocol", "restore", "--data", data, "--ckpt", fusion, "--tau", "2")
    assert evaluate(tmp_path / "a", *words, "--degraded", degraded) == 0
    assert evaluate(tmp_path / "b", *words, "--degradation", HALF) == 0
    one, other = rows_of(tmp_path / "a"), rows_of(tmp_path / "b")
    for rows in (one, other):
        for row in rows:
            del row["seconds"]
    assert one == other
    assert len(one) == 6


@pytest.mark.parametrize("changed", ["clean", "degraded"])
def test_both_pictures_of_a_pair_make_the_evaluation(
    changed: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for kind, shift in (("clean", 0), ("degraded", 10)):
        (tmp_path / kind).mkdir()
        for k, name in enumerate("xy"):
            (tmp_path / kind / f"{name}.png").write_bytes(encoded(picture(shift + k, 12, 12)))
    words = ("--protocol", "deblur", "--data", tmp_path / "clean")
    words = (*words, "--degraded", tmp_path / "degraded")
    out = tmp_path / "out"
    assert evaluate(out, *words) == 0
    (tmp_path / "degraded" / "no-partner.png").write_bytes(encoded(picture(5)))
    assert evaluate(out, *words, "--resume") == 0
    (tmp_path / changed / "y.png").write_bytes(encoded(picture(7, 12, 12)))
    name = "y" if changed == "clean" else "y (degraded)"
    assert f"data: {name} changed;" in refusal(capsys, out, *words, "--resume")


def test_degraded_pictures_are_paired_by_name_or_refused(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    degraded = write_pictures(tmp_path / "degraded", ["a", "d"], 10, 12)
    words = ("--protocol", "restore", "--data", data, "--degraded", degraded)
    told = f"--degraded {degraded}: 1 of 3 pictures are not there: b/c"
    assert refusal(capsys, tmp_path / "out", *words) == told
    told = "--degraded: restore needs degraded pictures: give their folder, or a --degradation"
    assert refusal(capsys, tmp_path / "out", *words[:4]).startswith(told)
    told = "--degradation: goes with no --degraded; leave one out"
    assert refusal(capsys, tmp_path / "out", *words, "--degradation", HALF) == told
    missing = refusal(capsys, tmp_path / "out", *words[:5], tmp_path / "nowhere")
    assert f"{tmp_path}/nowhere: no such file" in missing


def test_pairs_of_no_whole_scale_or_another_fail_alone(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    degraded = write_pictures(tmp_path / "degraded", ["a", "b/c", "d"], 10, 12)
    words = ("--protocol", "restore", "--data", data, "--degraded", degraded)
    (degraded / "a.png").write_bytes(encoded(picture(1, 9, 12)))
    (degraded / "d.png").write_bytes(encoded(picture(1, 5, 6)))
    assert evaluate(tmp_path / "out", *words) == 3
    errors = {row["key"]: row["error"] for row in rows_of(tmp_path / "out")}
    told = f"{data}/a.png: is 24x20, its degraded picture 12x9: no whole scale"
    assert errors == {"a": told, "b/c": "", "d": "the output is 12x10, the truth 24x20"}
    assert {row["method"] for row in rows_of(tmp_path / "out")} == {"bicubic"}
    for name in ("b/c", "d"):
        (degraded / f"{name}.png").write_bytes(encoded(picture(1, 21, 24)))
    assert refusal(capsys, tmp_path / "none", *words) == told


# Shards -------------------------------------------------------------------------------------------


@pytest.fixture
def restored(fusion: Path, tmp_path: Path) -> Path:
    """Shards of clean, degraded and restored pictures, as a fusion training reads them."""
    (tmp_path / "photos").mkdir()
    members = [(f"{key}.png", encoded(picture(k, HEIGHT, WIDTH))) for k, key in enumerate("xy")]
    write_tar(tmp_path / "photos" / "p.tar", members)
    words = ("shards", "restore", tmp_path / "photos", "--device", "cpu", "--workers", "1")
    restorer = fusion.with_name("restorer.safetensors")
    given = ("--restorer", restorer, "--out", tmp_path / "shards")
    assert main([str(word) for word in (*words, *given)]) == 0
    return tmp_path / "shards"


def plain(out: Path) -> list[dict[str, str]]:
    rows = rows_of(out)
    for row in rows:
        del row["seconds"]
    return rows


@pytest.mark.parametrize("alone", [False, True])
def test_shards_that_hold_both_give_the_numbers_of_made_ones(
    alone: bool, fusion: Path, restored: Path, tmp_path: Path
) -> None:
    source = restored / "p.tar" if alone else restored
    words = ("--protocol", "restore", "--data", source, "--ckpt", fusion, "--tau", "2")
    assert evaluate(tmp_path / "a", *words, "--degraded", source) == 0
    assert evaluate(tmp_path / "b", *words, "--degradation", HALF) == 0
    if alone:  # degraded pictures are drawn by key, but not these
        assert {row["key"] for row in rows_of(tmp_path / "a")} == {"x", "y"}
    assert plain(tmp_path / "a") == plain(tmp_path / "b")


def test_given_restored_pictures_are_what_is_fused(
    fusion: Path, restored: Path, tmp_path: Path
) -> None:
    words = ("--protocol", "restore", "--data", restored, "--degraded", restored, "--ckpt", fusion)
    out = tmp_path / "out"
    assert evaluate(out, *words, "--tau", "2", "--restorer", "given", "--seeds", "4") == 0
    model = load_fusion(fusion)
    for k, key in enumerate(("p/x", "p/y")):
        given = open_source(str(restored), key="SHARDS").read(k).restored
        assert given is not None
        for method in ("degraded", "fusion-restorer"):
            (row,) = rows_of(out, key=key, method=method)
            assert (pixels_of(out / row["png"]) == given).all()
        options, draws = PosteriorOptions(tau=2), sample_generators(4, [key], "posterior/0")
        wanted = sample_posterior(model.prior(), from_pixels(given), options, draws).samples
        (row,) = rows_of(out, key=key, method="fusion-tau2")
        assert (pixels_of(out / row["png"]) == to_uint8(wanted)[0]).all()


def test_shards_without_the_pictures_wanted_pair_their_own(
    restored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Clean pictures with themselves: of scale 1, nothing degraded."""
    photos = tmp_path / "photos"
    assert evaluate(
        tmp_path / "out", "--protocol", "restore", "--data", photos, "--degraded", photos
    ) == 0  # fmt: skip
    rows = rows_of(tmp_path / "out")
    assert {row["method"] for row in rows} == {"degraded"}
    assert all("identical to the truth" in row["blanks"] for row in rows)
