"""`lit-restore shards encode`: what a user types, and the one line and code that come back."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import encoded, picture
from support_autoencoder import save_autoencoder
from support_packing import contents

from lit_restore.cli.main import main
from lit_restore.data.latents import read_latent_info
from lit_restore.data.manifest import read_manifest
from lit_restore.io.lock import RunLock


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of pictures of two classes, and an autoencoder; not to be written to."""
    folder = tmp_path_factory.mktemp("made")
    for k in range(5):
        place = folder / "photos" / ("sea" if k % 2 else "hill")
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{k}.png").write_bytes(encoded(picture(k)))
    words = ("make", str(folder / "photos"), "--classes", "--per_shard", "2", "--workers", "1")
    assert shards(*words, "--out", str(folder / "pictures")) == 0
    save_autoencoder(folder / "vae")
    return folder


@pytest.fixture
def here(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("pictures", "vae"):
        Path(name).symlink_to(made / name)
    return tmp_path


def shards(*words: str) -> int:
    return main(["shards", *words])


def encode(*words: str, out: str = "out", size: str = "16") -> int:
    options = ("--vae", "vae", "--out", out, "--size", size, "--workers", "1", "--device", "cpu")
    return shards("encode", "pictures", *options, *words)


def test_encode_inspect_and_verify(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert encode("--batch", "2", "--dtype", "float32") == 0
    said = capsys.readouterr()
    assert said.out.startswith("out: latents of 5 pictures in 3 shards, ")
    assert "train-000002.tar: 1 samples (5 of 5)" in said.err  # stderr is no terminal here
    assert said.err.count("\n") == 3
    assert shards("inspect", "out") == 0
    rows = dict(line.split(None, 1) for line in capsys.readouterr().out.splitlines())
    assert rows["fields"] == "array, label"
    assert rows["formats"] == "5 float32 2x2x4x4x4"
    assert rows["classes"] == "2: hill, sea"
    assert shards("verify", "out", "--decode") == 0
    keys = read_manifest(Path("pictures")).count, read_manifest(Path("out")).count
    assert keys == (5, 5)


def test_options_reach_the_latents(here: Path) -> None:
    assert encode("--no-flip", "--compute", "bfloat16", "--batch", "3", size="32") == 0
    info = read_latent_info(Path("out"))
    assert (info.mirrored, info.compute, info.dtype) == (False, "bfloat16", "float16")
    assert (info.batch, info.size, info.shape) == (3, 32, (2, 4, 8, 8))


def test_two_workers_write_the_same_and_a_finished_set_is_not_made_again(here: Path) -> None:
    assert encode() == 0
    assert encode("--workers", "2", out="two") == 0
    assert contents(Path("two")) == contents(Path("out"))
    before = Path("out/train-000000.tar").stat().st_ino
    assert encode() == 0
    assert Path("out/train-000000.tar").stat().st_ino == before


def other_vae() -> None:
    assert encode() == 0
    Path("vae").unlink()
    save_autoencoder(Path("vae"), seed=3)


def pickled_vae() -> None:
    Path("vae").unlink()
    save_autoencoder(Path("vae"))
    Path("vae/diffusion_pytorch_model.safetensors").unlink()
    torch.save({}, "vae/model.ckpt")


@pytest.mark.parametrize(
    ("prepare", "words", "line"),
    [
        (None, "--size 18", "size: 18 is no multiple of the VAE's 4; use 16 or 20"),
        (None, "--size 0", "size: 0 is below 1"),
        (None, "--batch 0", "batch: 0 is below 1"),
        (None, "--workers 0", "workers: 0 is below 1"),
        (None, "--dtype bfloat16", "argument --dtype: invalid choice: 'bfloat16'"),
        (None, "--vae nowhere", "nowhere: no such folder"),
        (None, "--vae hf://owner/name", "hf://owner/name: is not on this machine; download it"),
        (None, "--vae pictures", "pictures: holds no config.json"),
        (pickled_vae, "", "vae/model.ckpt: is a pickle, which can run code, and is not read"),
        (other_vae, "", "out: holds latents of another VAE; give another folder"),
        (encode, "--batch 3", "out: holds latents made with batch 32, not 3"),
        (lambda: shutil.copytree("pictures", "out"), "", "out: holds shards of other input"),
    ],
)
def test_what_is_wrong_is_one_line_and_code_2(
    here: Path,
    capsys: pytest.CaptureFixture[str],
    prepare: Callable[[], object] | None,
    words: str,
    line: str,
) -> None:
    if prepare is not None:
        prepare()
    capsys.readouterr()
    assert encode(*words.split()) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"error: {line}"), told
    assert told.count("\n") == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_that_is_not_there_is_told(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert encode("--device", "cuda") == 2
    assert "error: --device cuda: there is none here; use cpu" in capsys.readouterr().err


def test_no_pictures_are_told(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--vae", "vae", "--out", "out")
    assert shards("encode", "nowhere", *words) == 2
    assert 'error: SHARDS: no such shard or folder "nowhere"' in capsys.readouterr().err


def test_a_folder_in_use_is_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with RunLock(Path("out")):
        assert encode() == 2
    assert "error: out: in use by pid" in capsys.readouterr().err


def test_help_names_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as leaving:
        shards("encode", "--help")
    assert leaving.value.code == 0
    text = capsys.readouterr().out
    options = "vae out size batch dtype compute device flip no-flip workers"
    assert all(f"--{name}" in text for name in options.split())
