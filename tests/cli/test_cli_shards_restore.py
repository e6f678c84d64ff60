"""`lit-restore shards restore`: what it makes, and its one-line errors."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import encoded, picture, write_tar
from support_packing import contents
from support_restoration import save_denoiser, save_restorer

from lit_restore.cli.main import main
from lit_restore.data.degradations import Chain, Downscale, GaussianBlur, describe
from lit_restore.data.locate import open_source
from lit_restore.data.manifest import read_manifest
from lit_restore.io.lock import RunLock


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of pictures of two classes; not to be written to."""
    folder = tmp_path_factory.mktemp("made")
    for k in range(5):
        place = folder / "photos" / ("sea" if k % 2 else "hill")
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{k}.png").write_bytes(encoded(picture(k, 21, 24)))
    words = ("make", str(folder / "photos"), "--classes", "--per_shard", "2", "--workers", "1")
    assert shards(*words, "--out", str(folder / "pictures")) == 0
    return folder


@pytest.fixture
def here(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("pictures").symlink_to(made / "pictures")
    save_restorer(Path("net"))
    return tmp_path


def shards(*words: str) -> int:
    return main(["shards", *words])


def restore(*words: str, source: str = "pictures", out: str = "out", net: str = "net") -> int:
    options = ("--restorer", net, "--out", out, "--workers", "1", "--device", "cpu")
    return shards("restore", source, *options, *words)


def told(folder: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(folder, "manifest.json").read_text())["restored"]
    return found


def test_restore_inspect_and_verify(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert restore() == 0
    said = capsys.readouterr()
    assert said.out.startswith("out: 5 restored pictures in 3 shards, ")
    assert "train-000002.tar: 1 samples (5 of 5)" in said.err
    assert shards("inspect", "out") == 0
    rows = dict(line.split(None, 1) for line in capsys.readouterr().out.splitlines())
    assert rows["fields"] == "degraded, image, label, restored"
    assert rows["classes"] == "2: hill, sea"
    assert shards("verify", "out", "--decode") == 0
    assert read_manifest(Path("out")).count == 5


def test_pictures_are_degraded_as_in_the_network_s_training_or_as_is_said(here: Path) -> None:
    assert restore() == 0
    assert told("out")["degradation"] == describe(Downscale(2))
    chain = (
        "{class_path: Chain, init_args: {steps: [{class_path: GaussianBlur}, "
        "{class_path: Downscale, init_args: {scale: 2}}]}}"
    )
    given = ("--degradation", chain, "--other-degradation", "--seed", "7")
    assert restore(*given, out="blurred") == 0
    found = told("blurred")
    assert (found["seed"], found["scale"]) == (7, 2)
    assert found["degradation"] == describe(Chain([GaussianBlur(), Downscale(2)]))
    plain, blurred = (open_source(name, key="SHARDS").read(0) for name in ("out", "blurred"))
    assert np.array_equal(plain.image, blurred.image)
    assert plain.degraded is not None
    assert blurred.degraded is not None
    assert not np.array_equal(plain.degraded, blurred.degraded)


def test_two_workers_write_the_same_and_a_finished_set_is_not_made_again(here: Path) -> None:
    assert restore() == 0
    assert restore("--workers", "2", out="two") == 0
    assert contents(Path("two")) == contents(Path("out"))
    before = Path("out/train-000000.tar").stat().st_ino
    assert restore() == 0
    assert Path("out/train-000000.tar").stat().st_ino == before


def write_pairs() -> str:
    clean, low = picture(0, 20, 24), picture(0, 10, 12)
    write_tar(Path("p.tar"), [("a.image.png", encoded(clean)), ("a.degraded.png", encoded(low))])
    return "p.tar"


def test_pairs_need_no_degradation(here: Path) -> None:
    save_restorer(Path("foreign"), degradation=None)
    assert restore(source=write_pairs(), net="foreign") == 0
    assert told("out")["degradation"] is None
    sample = open_source("out", key="SHARDS").read(0)
    assert sample.degraded is not None
    assert np.array_equal(sample.degraded, picture(0, 10, 12))


def paired() -> None:
    write_pairs()
    Path("pictures").unlink()
    Path("pictures").mkdir()
    Path("p.tar").rename("pictures/p.tar")


def untaught() -> None:
    save_restorer(Path("net"), degradation=None)


def other_net() -> None:
    assert restore() == 0
    save_restorer(Path("net"), seed=3)


def damaged() -> None:
    save_restorer(Path("net"), degradation={"class_path": "Rain"})


HALVED = "--degradation={class_path: Downscale, init_args: {scale: 2}}"


@pytest.mark.parametrize(
    ("prepare", "words", "line"),
    [
        (None, ["--workers=0"], "workers: 0 is below 1"),
        (None, ["--restorer=nowhere"], "nowhere: no such file"),
        (None, ["--degradation=Downscale"], "--degradation: expected options (key: value), found"),
        (None, ["--degradation={class_path: Rain}"], "--degradation: Rain is not one of Gaussian"),
        (None, ["--degradation={class_path: Downscale, init_args: {size: 2}}"],
         "--degradation: its options are not those of Downscale"),
        (None, ["--degradation={scale: 2}"], "--degradation: is no {class_path: NAME, init_args: "),
        (None, ["--degradation={class_path: ["], "--degradation: "),
        (None, ["--degradation={class_path: Downscale}"],
         "--degradation: net was trained with Downscale.scale 2, given 4; --other-degradation "),
        (None, ["--degradation={class_path: Downscale}", "--other-degradation"],
         "pictures/train-000000.tar: sea__3: is 6x5 for 24x20, the network enlarges by 2"),
        (paired, [HALVED], "pictures/p.tar: a: holds its degraded picture; leave --degradation "),
        (untaught, [], "--degradation: net was not trained on pictures degraded here, and the "),
        (damaged, [], "net: Rain is not one of GaussianNoise"),
        (other_net, [], "out: holds shards of other input or options"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_one_line_and_code_2(
    here: Path,
    capsys: pytest.CaptureFixture[str],
    prepare: Callable[[], object] | None,
    words: list[str],
    line: str,
) -> None:
    if prepare is not None:
        prepare()
    capsys.readouterr()
    assert restore(*words) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {line}"), error
    assert error.count("\n") == 1


def test_a_denoiser_restores_no_pictures(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_denoiser(Path("net"))
    assert restore(HALVED) == 2
    assert "net: UNet takes a noise level" in capsys.readouterr().err


def test_a_folder_in_use_is_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with RunLock(Path("out")):
        assert restore() == 2
    assert "error: out: in use by pid" in capsys.readouterr().err


def test_no_pictures_are_told(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert restore(source="nowhere") == 2
    assert 'error: SHARDS: no such shard or folder "nowhere"' in capsys.readouterr().err


def test_help_names_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as leaving:
        shards("restore", "--help")
    assert leaving.value.code == 0
    text = capsys.readouterr().out
    options = "restorer out degradation seed device workers"
    assert all(f"--{name}" in text for name in options.split())
