"""`lit-restore denoise` on one's own pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import encoded, picture
from support_evaluation import pixels_of, write_network, write_pictures

from lit_restore.cli.main import main
from lit_restore.evaluation.quantise import from_pixels, to_uint8
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
    names = [photos / name for name in ("a.png", "cut.jpg", "nowhere.png", "b.png")]
    assert denoise(*names, "--ckpt", network, "--sigma", "10") == 3
    err = capsys.readouterr().err.splitlines()
    assert [line.split(": ")[0] for line in err] == ["failed", "failed"]
    assert "truncated" in err[0]
    assert "no such file" in err[1]
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
