"""`lit-restore restore` on one's own pictures."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import encoded, picture
from support_evaluation import pixels_of, write_pictures
from support_restoration import save_all, save_denoiser, save_fusion, save_restorer

from lit_restore.cli.main import main
from lit_restore.inverse import PosteriorOptions
from lit_restore.io import fs
from lit_restore.io.disk import Disk
from lit_restore.io.quantise import from_pixels, to_uint8
from lit_restore.sampling.restoration import Restored, RestoreOptions, restore_images
from lit_restore.weights import load_fusion


@pytest.fixture
def network(tmp_path: Path) -> Path:
    return save_all(tmp_path / "nets")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return write_pictures(tmp_path / "photos", ["a", "b"], 11, 14)


def restore(*words: str | Path) -> int:
    return main(["restore", *map(str, words)])


def expected(network: Path, photo: Path, options: RestoreOptions) -> Restored:
    x = from_pixels(pixels_of(photo))
    return restore_images(load_fusion(network), x, options, [photo.stem])


def test_a_picture_is_a_sample_of_its_name_and_the_seed(
    photos: Path, network: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [photos / "a.png", photos / "b.png", "--ckpt", network]
    assert restore(*words, "--tau", "5", "--seed", "3") == 0
    for name in "ab":
        options = RestoreOptions(posterior=PosteriorOptions(tau=5), seed=3)
        wanted = expected(network, photos / f"{name}.png", options)
        found = pixels_of(photos / f"{name}.restored.png")
        assert found.shape == (22, 28, 3)
        assert (found == to_uint8(wanted.images)[0]).all()
    printed = capsys.readouterr()
    assert printed.out.count("restored.png: tau 5, 1 + 5 evaluations\n") == 2
    assert printed.err == ""


def test_the_sampler_s_options_reach_it(photos: Path, network: Path) -> None:
    words = "--tau 20 --steps 4 --tail ddim --eta 0.5 --start ccdf --estimate denoised"
    assert restore(photos / "a.png", "--ckpt", network, *words.split()) == 0
    options = RestoreOptions(
        posterior=PosteriorOptions(tau=20, steps=4, tail="ddim", eta=0.5, start="ccdf"),
        estimate="denoised",
    )
    wanted = expected(network, photos / "a.png", options)
    assert (pixels_of(photos / "a.restored.png") == to_uint8(wanted.images)[0]).all()


def test_tau_0_is_the_restoration_network_alone(
    photos: Path, network: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert restore(photos / "a.png", "--ckpt", network, "--tau", "0") == 0
    with torch.no_grad():
        wanted = load_fusion(network).restorer(from_pixels(pixels_of(photos / "a.png")))
    assert (pixels_of(photos / "a.restored.png") == to_uint8(wanted)[0]).all()
    assert "tau 0, 1 + 0 evaluations" in capsys.readouterr().out


def test_of_several_samples_mean_and_deviation_are_written(
    photos: Path, network: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [photos / "a.png", "--ckpt", network, "--tau", "9", "--samples", "3"]
    assert restore(*words) == 0
    assert "tau 9, 1 + 27 evaluations, mean of 3 samples" in capsys.readouterr().out
    options = RestoreOptions(posterior=PosteriorOptions(tau=9), samples=3)
    wanted = expected(network, photos / "a.png", options)
    assert wanted.deviation is not None
    assert (pixels_of(photos / "a.restored.png") == to_uint8(wanted.images)[0]).all()
    deviation = pixels_of(photos / "a.deviation.png")
    level = 16 * wanted.deviation.mean(1, keepdim=True)
    assert (deviation == to_uint8(level)[0]).all()
    assert deviation.max() > 0
    (photos / "a.restored.png").unlink()
    assert restore(*words) == 2  # the deviation is not overwritten either
    assert capsys.readouterr().err.endswith("a.deviation.png: exists; --force overwrites it\n")
    assert not (photos / "a.restored.png").exists()
    assert restore(*words, "--force") == 0


def test_results_go_where_they_are_asked_and_overwrite_nothing(
    photos: Path, network: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "folder"
    words = [photos / "a.png", photos / "b.png", "--ckpt", network, "--tau", "2", "--out", out]
    assert restore(*words) == 0
    assert sorted(p.name for p in out.iterdir()) == ["a.restored.png", "b.restored.png"]
    (out / "b.restored.png").unlink()
    (out / "a.restored.png").write_bytes(b"mine")
    capsys.readouterr()
    assert restore(*words) == 2
    assert capsys.readouterr().err.endswith("a.restored.png: exists; --force overwrites it\n")
    assert (out / "a.restored.png").read_bytes() == b"mine"
    assert not (out / "b.restored.png").exists()
    assert restore(*words, "--force") == 0
    assert pixels_of(out / "a.restored.png").shape == (22, 28, 3)


def test_a_grey_picture_stays_grey(tmp_path: Path, network: Path) -> None:
    (tmp_path / "g.png").write_bytes(encoded(picture(0, 8, 9)[..., 0]))
    assert restore(tmp_path / "g.png", "--ckpt", network, "--tau", "3", "--samples", "2") == 0
    assert pixels_of(tmp_path / "g.restored.png").shape == (16, 18, 1)
    assert pixels_of(tmp_path / "g.deviation.png").shape == (16, 18, 1)


@pytest.mark.parametrize(("height", "width"), [(5, 7), (1, 1), (1, 30)])
def test_a_tiny_picture_is_restored(height: int, width: int, tmp_path: Path, network: Path) -> None:
    (tmp_path / "t.png").write_bytes(encoded(picture(0, height, width)))
    assert restore(tmp_path / "t.png", "--ckpt", network, "--tau", "3") == 0
    assert pixels_of(tmp_path / "t.restored.png").shape == (2 * height, 2 * width, 3)


def test_a_transparent_picture_is_laid_on_a_background(tmp_path: Path, network: Path) -> None:
    clear = np.zeros((8, 8, 4), np.uint8)
    (tmp_path / "c.png").write_bytes(encoded(clear))
    words = [tmp_path / "c.png", "--ckpt", network, "--tau", "0"]
    assert restore(*words, "--background", "white") == 0
    assert pixels_of(tmp_path / "c.restored.png").mean() > 200


def test_another_network_can_be_put_under_the_fusion(
    photos: Path, network: Path, tmp_path: Path
) -> None:
    restorer = save_restorer(tmp_path / "four.safetensors", seed=4, scale=4)
    denoiser = save_denoiser(tmp_path / "other.safetensors", seed=4)
    words = [photos / "a.png", "--ckpt", network, "--tau", "6", "--force"]
    assert restore(*words) == 0
    plain = pixels_of(photos / "a.restored.png")
    assert restore(*words, "--denoiser", denoiser) == 0
    assert (pixels_of(photos / "a.restored.png") != plain).any()
    assert restore(*words, "--restorer", restorer) == 0
    assert pixels_of(photos / "a.restored.png").shape == (44, 56, 3)


def test_a_large_picture_goes_in_tiles(tmp_path: Path, network: Path) -> None:
    (tmp_path / "wide.png").write_bytes(encoded(picture(0, 8, 150)))
    words = [tmp_path / "wide.png", "--ckpt", network, "--tau", "3", "--force"]
    assert restore(*words) == 0
    whole = pixels_of(tmp_path / "wide.restored.png").astype(int)
    assert restore(*words, "--tile", "160") == 0
    tiled = pixels_of(tmp_path / "wide.restored.png").astype(int)
    assert np.abs(tiled - whole).max() <= 1  # the last bits of a convolution, rounded


def test_some_failures_leave_the_others(
    photos: Path, network: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "cut.jpg").write_bytes(encoded(picture(0, 64, 64), "jpg")[:400])
    (photos / "film.gif").write_bytes(encoded(picture(0, 64, 64), "gif"))
    names = [photos / name for name in ("a.png", "cut.jpg", "film.gif", "b.png")]
    assert restore(*names, "--ckpt", network, "--tau", "2") == 3
    err = capsys.readouterr().err.splitlines()
    assert [line.split(": ")[0] for line in err] == ["failed", "failed"]
    assert "truncated" in err[0]
    assert (photos / "b.restored.png").exists()
    assert not (photos / "cut.restored.png").exists()


WRONG = {
    "tau beyond the training": (["--tau", "251"], "--tau: 251 is above 250, the largest time "),
    "negative tau": (["--tau=-1"], "--tau: -1 is negative"),
    "tau of no number": (["--tau", "much"], "argument --tau: invalid int value: 'much'"),
    "no steps": (["--steps", "0"], "--steps: 0 is not within 1 to tau (50)"),
    "no samples": (["--samples", "0"], "--samples: 0 is below 1"),
    "eta without ddim": (["--eta", "0.5"], "--eta: only ddim steps have it"),
    "eta too large": (["--eta", "2", "--tail", "ddim"], "--eta: 2.0 is not within 0 to 1"),
    "small tile": (["--tile", "50"], "--tile: 50 is below 64"),
    "no such tail": (["--tail", "euler"], "argument --tail: invalid choice: 'euler'"),
    "no such picture": (["{d}/nowhere.png"], "nowhere.png: no such file"),
    "a folder": (["{d}"], "photos: is a folder; give its pictures"),
    "no network": (["--ckpt", "{d}/none"], "none: no such file"),
    "picture as network": (["--ckpt", "{d}/a.png"], "a.png: "),
    "folder as network": (["--ckpt", "{d}"], "photos: holds no complete checkpoint"),
    "denoiser as fusion": (["--ckpt", "{denoiser}"], "{denoiser}: holds a UNet, trained for deno"),
    "fusion as denoiser": (["--denoiser", "{net}"], "--denoiser: {net} holds a FusionNet, a den"),
    "denoiser as restorer": (
        ["--restorer", "{denoiser}"],
        "UNet takes a noise level, which pictures",
    ),
    "restorer that is nowhere": (["--restorer", "{d}/x.pth"], "x.pth: no such file"),
    "moved denoiser": (
        ["--ckpt", "{moved}"],
        "--denoiser: {d}/moved, over which {moved} was ",
    ),
    "no such profile": (["--profile", "nope"], "holds profile ema, not nope"),
    "no colour": (["--background", "whitish"], "--background: whitish is not a colour"),
    "out is a file": (["--out", "{net}"], "fusion.safetensors: is a file; --out names a folder"),
    "empty name": (["--ckpt", ""], "argument --ckpt: is empty"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_one_line_and_nothing_is_written(
    case: str, photos: Path, network: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = {"model": {"denoiser": str(photos / "moved")}}
    moved = save_fusion(network.with_name("moved.safetensors"), config=gone)
    places = {"d": photos, "net": network, "moved": moved}
    places["denoiser"] = network.with_name("denoiser.safetensors")
    before = sorted(tmp_path.rglob("*"))
    words, message = WRONG[case]
    given = [word.format(**places) for word in words]
    # A good picture stands first: it is not restored either.
    first = [str(photos / "a.png"), "--ckpt", str(network)]
    given = [*first, *given] if given[0].startswith("--") else [first[0], *given, *first[1:]]
    assert restore(*given) == 2
    printed = capsys.readouterr()
    assert printed.err.count("\n") == 1, printed.err
    assert printed.err.startswith("error: ")
    assert message.format(**places) in printed.err
    assert printed.out == ""
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(("code", "wanted"), [(errno.EACCES, 2), (errno.ENOSPC, 74)])
def test_only_a_disk_that_takes_no_more_is_74(
    code: int, wanted: int, photos: Path, network: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Refusing(Disk):
        def create(self, path: Path) -> int:
            raise OSError(code, os.strerror(code), str(path))

    with fs.using(Refusing()):
        assert restore(photos / "a.png", "--ckpt", network, "--tau", "1") == wanted
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1
    assert f"cannot write ({os.strerror(code)}); " in printed


def test_help_names_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as leaving:
        restore("--help")
    assert leaving.value.code == 0
    text = capsys.readouterr().out
    options = (
        "ckpt denoiser restorer profile device tau steps tail eta variance start estimate seed "
        "tile samples out force background"
    )
    assert all(f"--{name}" in text for name in options.split())
