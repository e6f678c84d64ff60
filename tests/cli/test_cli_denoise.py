"""`lit-restore denoise` on one's own pictures."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import encoded, picture
from support_evaluation import pixels_of, write_network, write_pictures

from lit_restore.cli.main import main
from lit_restore.io import fs
from lit_restore.io.disk import Disk
from lit_restore.io.quantise import from_pixels, to_uint8
from lit_restore.networks import apply_padded
from lit_restore.weights import load_exported


@pytest.fixture
def network(tmp_path: Path) -> Path:
    return write_network(tmp_path / "net.safetensors")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return write_pictures(tmp_path / "photos", ["a", "b"], 33, 41)


def denoise(*words: str | Path) -> int:
    return main(["denoise", *map(str, words)])


def test_the_network_is_applied_at_the_given_level(photos: Path, network: Path) -> None:
    assert denoise(photos / "a.png", "--ckpt", network, "--sigma", "25") == 0
    x = from_pixels(pixels_of(photos / "a.png"))
    with torch.inference_mode():
        expected = apply_padded(load_exported(network), x, torch.tensor([25 / 255]))
    assert (pixels_of(photos / "a.denoised.png") == to_uint8(expected)[0]).all()


def test_results_go_where_they_are_asked_and_overwrite_nothing(
    photos: Path, network: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [photos / "a.png", photos / "b.png", "--ckpt", network, "--sigma", "5"]
    out = tmp_path / "new" / "folder"
    assert denoise(*words, "--out", out) == 0
    assert sorted(p.name for p in out.iterdir()) == ["a.denoised.png", "b.denoised.png"]
    assert "noise of 5 of 255 removed" in capsys.readouterr().out
    (out / "b.denoised.png").unlink()
    (out / "a.denoised.png").write_bytes(b"mine")
    assert denoise(*words, "--out", out) == 2
    assert capsys.readouterr().err.endswith("a.denoised.png: exists; --force overwrites it\n")
    assert [p.name for p in out.iterdir()] == ["a.denoised.png"]
    assert (out / "a.denoised.png").read_bytes() == b"mine"
    assert denoise(*words, "--out", out, "--force") == 0
    assert pixels_of(out / "a.denoised.png").shape == (33, 41, 3)


def test_the_estimated_level_is_said(
    network: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    noisy = np.clip(128 + rng.normal(0, 20, (96, 96, 3)), 0, 255).astype(np.uint8)
    (tmp_path / "n.png").write_bytes(encoded(noisy))
    assert denoise(tmp_path / "n.png", "--ckpt", network) == 0
    said = capsys.readouterr().out
    assert "(estimated)" in said
    assert float(said.split("noise of ")[1].split()[0]) == pytest.approx(20, rel=0.06)


def test_some_failures_leave_the_others(
    photos: Path, network: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "cut.jpg").write_bytes(encoded(picture(0, 64, 64), "jpg")[:400])
    (photos / "film.gif").write_bytes(encoded(picture(0, 64, 64), "gif"))
    names = [photos / name for name in ("a.png", "cut.jpg", "film.gif", "b.png")]
    assert denoise(*names, "--ckpt", network, "--sigma", "10") == 3
    err = capsys.readouterr().err.splitlines()
    assert [line.split(": ")[0] for line in err] == ["failed", "failed"]
    assert "truncated" in err[0]
    assert "not a readable JPEG, PNG or WebP (GIF)" in err[1]
    assert (photos / "b.denoised.png").exists()
    assert not (photos / "cut.denoised.png").exists()


def test_a_grey_picture_stays_grey(tmp_path: Path, network: Path) -> None:
    (tmp_path / "g.png").write_bytes(encoded(picture(0)[..., 0]))
    assert denoise(tmp_path / "g.png", "--ckpt", network, "--sigma", "10") == 0
    assert pixels_of(tmp_path / "g.denoised.png").shape == (40, 48, 1)


def test_large_pictures_go_in_tiles(
    photos: Path, network: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lit_restore.evaluation import tiles

    seen = []
    real = tiles._starts
    monkeypatch.setattr(tiles, "_starts", lambda *a: seen.append(a) or real(*a))
    assert denoise(photos / "a.png", "--ckpt", network, "--sigma", "10") == 0
    assert not seen
    whole = pixels_of(photos / "a.denoised.png").astype(int)
    defaults = {**tiles.restore_tiled.__kwdefaults__, "largest": 100, "tile": 32, "overlap": 24}
    monkeypatch.setattr(tiles.restore_tiled, "__kwdefaults__", defaults)
    assert denoise(photos / "a.png", "--ckpt", network, "--sigma", "10", "--force") == 0
    assert seen
    # The network looks a pixel or two further than the tiles' context.
    tiled = pixels_of(photos / "a.denoised.png").astype(int)
    assert np.abs(tiled - whole).max() <= 2
    assert np.abs(tiled - whole).mean() < 0.1


@pytest.mark.parametrize("sigma", ["-1", "256", "much", "nan"])
def test_impossible_levels_are_refused(
    sigma: str, photos: Path, network: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert denoise(photos / "a.png", "--ckpt", network, f"--sigma={sigma}") == 2
    assert "8-bit picture, 0 to 255 (try 25), or auto" in capsys.readouterr().err


def test_two_results_of_one_name_are_refused(
    photos: Path, network: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "a.jpg").write_bytes(encoded(picture(0), "jpg"))
    assert denoise(photos / "a.png", photos / "a.jpg", "--ckpt", network) == 2
    assert "would be written to the same" in capsys.readouterr().err


def test_one_picture_by_two_names_is_denoised_once(
    photos: Path, network: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [photos / "a.png", photos / ".." / "photos" / "a.png"]
    assert denoise(*names, "--ckpt", network, "--sigma", "10") == 0
    assert capsys.readouterr().out.count("removed") == 1


def test_two_spellings_of_a_folder_are_one_place(photos: Path, network: Path) -> None:
    (photos / "a.jpg").write_bytes(encoded(picture(0), "jpg"))
    other = photos / ".." / "photos" / "a.jpg"
    assert denoise(photos / "a.png", other, "--ckpt", network) == 2


WRONG = {
    "no such picture": (["{d}/nowhere.jpeg"], "nowhere.jpeg: no such file; check its name"),
    "misspelt picture": (["{d}/b.pgn"], "b.pgn: no such file; did you mean b.png?"),
    "pattern of nothing": (["{d}/*.jpg"], "*.jpg: no such picture; the pattern matches no file"),
    "a folder": (["{d}"], "photos: is a folder; give its pictures: {d}/*.png"),
    "a device": (["/dev/null"], "/dev/null: is not a regular file; check its name"),
    "an empty path": ([""], "argument IMAGE: is empty; was a variable"),
    "name too long": (["{long}"], "is too long a name for a result; rename the picture"),
    "out is a file": (["--out", "{net}"], "net.safetensors: is a file; --out names a folder"),
    "out below a file": (["--out", "{net}/x"], "net.safetensors: is a file; --out names a folder"),
    "out is empty": (["--out", ""], "argument --out: is empty; was a variable"),
    "out cannot be made": (["--out", "/proc/x"], "choose a place of yours with --out"),
    "out leads nowhere": (["--out", "{link}"], "choose a place of yours with --out"),
    "a folder in the way": (["{d}/taken.png"], "is a folder where the result would be; rename it"),
    "no colour": (["--background", "whitish"], "--background: whitish is not a colour; use a name"),
    "empty colour": (["--background", ""], "is not a colour; use a name or #rrggbb: white, #ff"),
    "colour too bright": (["--background", "rgb(300,0,0)"], "rgb(300,0,0) is not a colour"),
    "empty network": (["--ckpt", "{empty}"], "empty file; --ckpt takes a file of `lit-restore ex"),
    "picture as network": (["--ckpt", "{d}/a.png"], "; --ckpt takes a file of `lit-restore export"),
    "folder as network": (["--ckpt", "{d}"], "holds no complete checkpoint; --ckpt takes a file"),
    "no network": (["--ckpt", "{d}/none"], "no such file"),
    "network of no name": (["--ckpt", ""], "argument --ckpt: is empty; was a variable"),
    "no such profile": (["--profile", "nope"], "holds profile ema, not nope; leave --profile out"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_one_line_and_nothing_is_written(
    case: str, photos: Path, network: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {"d": photos, "net": network, "empty": tmp_path / "empty", "link": tmp_path / "link"}
    places["empty"].write_bytes(b"")
    places["link"].symlink_to("nowhere")
    places["long"] = photos / f"{'x' * 240}.png"
    for name in ("taken.png", places["long"].name):
        (photos / name).write_bytes((photos / "a.png").read_bytes())
    (photos / "taken.denoised.png").mkdir()
    before = sorted(tmp_path.rglob("*"))
    words, message = WRONG[case]
    given = [word.format(**places) for word in words]
    # A good picture stands first: it is not denoised either.
    first = [str(photos / "a.png"), "--ckpt", str(network), "--sigma", "10"]
    given = [*first, *given] if given[0].startswith("--") else [first[0], *given, *first[1:]]
    assert denoise(*given) == 2
    printed = capsys.readouterr()
    assert printed.err.count("\n") == 1, printed.err
    assert printed.err.startswith("error: ")
    assert message.format(**places) in printed.err
    assert printed.out == ""
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("code", "expected"),
    [(errno.EACCES, 2), (errno.EPERM, 2), (errno.ENOSPC, 74), (errno.EROFS, 74), (errno.EIO, 74)],
)
def test_only_a_disk_that_takes_no_more_is_74(
    code: int,
    expected: int,
    photos: Path,
    network: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    class Refusing(Disk):
        def create(self, path: Path) -> int:
            raise OSError(code, os.strerror(code), str(path))

    words = [photos / "a.png", "--ckpt", network, "--sigma", "10", "--out", tmp_path / "out"]
    with fs.using(Refusing()):
        assert denoise(*words) == expected
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1
    assert f"cannot write ({os.strerror(code)}); " in printed
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (4, 30)])
def test_the_noise_of_a_tiny_picture_is_not_guessed(
    shape: tuple[int, int], network: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "tiny.png"
    path.write_bytes(encoded(picture(0)[: shape[0], : shape[1]]))
    assert denoise(path, "--ckpt", network) == 3
    error = capsys.readouterr().err
    assert f"{shape[1]}x{shape[0]} is too small to estimate its noise; give --sigma 25" in error
    assert error.count("\n") == 1
    assert denoise(path, "--ckpt", network, "--sigma", "25") == 0
    assert pixels_of(tmp_path / "tiny.denoised.png").shape == (*shape, 3)


def test_a_black_picture_has_no_noise(
    network: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "night.png").write_bytes(encoded(np.zeros((40, 48, 3), np.uint8)))
    assert denoise(tmp_path / "night.png", "--ckpt", network) == 0
    printed = capsys.readouterr()
    assert "noise of 0 of 255 (estimated) removed" in printed.out
    assert printed.err == ""


def test_names_of_any_kind_are_printed(network: Path, tmp_path: Path) -> None:
    names = [os.fsencode(tmp_path) + b"/" + name for name in (b"caf\xe9.png", "图.png".encode())]
    for name in names:
        Path(os.fsdecode(name)).write_bytes(encoded(picture(0)))
    code = "import sys; from lit_restore.cli.main import main; sys.exit(main())"
    words = [sys.executable, "-c", code, "denoise", *names, "--ckpt", network, "--sigma", "9"]
    ascii_only = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(words, env=ascii_only, capture_output=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.count(b"removed") == 2
