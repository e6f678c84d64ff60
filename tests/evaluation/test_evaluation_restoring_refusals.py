"""Evaluations of restorations that are refused, each by one line, or gone on with."""

from __future__ import annotations

import random
import signal
from pathlib import Path

import numpy as np
import pytest
from conftest import encoded, picture
from support_evaluation import KillingDisk, run, write_network, write_pictures
from support_fork import fork, wait_all
from support_restoration import save_fusion
from support_restoring import (
    HALF,
    RESTORE,
    evaluate,
    hide_weights,
    networks,
    refusal,
    rows_of,
)

from lit_restore.evaluation import rows as rows_module
from lit_restore.evaluation.rows import TIMING
from lit_restore.io import fs

KILLS = 2


@pytest.fixture(autouse=True)
def no_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hide_weights(tmp_path, monkeypatch)


@pytest.fixture(scope="module")
def fusion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return networks(tmp_path_factory.mktemp("made"))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_pictures(tmp_path / "data", ["a", "b/c", "d"], 20, 24)


def untimed(out: Path) -> list[dict[str, str]]:
    return [{k: v for k, v in row.items() if k not in TIMING} for row in rows_of(out)]


# Gone on with -------------------------------------------------------------------------------------


def test_killed_and_resumed_it_gives_the_same_rows(
    data: Path, fusion: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows_module, "_ROWS", 2)
    words = (*RESTORE, "--data", data, "--ckpt", fusion, "--tau", "1,2", "--seeds", "0,1")
    counting = KillingDisk()
    with fs.using(counting):
        assert evaluate(tmp_path / "whole", *words) == 0
    expected = untimed(tmp_path / "whole")
    assert len(expected) == 3 * 6
    moments = sorted(random.Random(1).sample(range(8, counting.count), KILLS))
    for at in moments:
        out = tmp_path / f"killed-{at}"

        def child(at: int = at, out: Path = out) -> int:
            with fs.using(KillingDisk(at)):
                return evaluate(out, *words)

        assert wait_all([fork(child, env={}, output=tmp_path / "log")], 60) == [-signal.SIGKILL]
        assert evaluate(out, *words, "--resume") == 0, (at, moments)
        assert untimed(out) == expected, (at, moments)


def test_a_finished_run_restores_nothing_again_but_a_picture_that_is_gone(
    data: Path, fusion: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = (*RESTORE, "--data", data, "--ckpt", fusion, "--tau", "2")
    out = tmp_path / "out"
    assert evaluate(out, *words) == 0
    before = (out / "rows.csv").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr("lit_restore.evaluation.restoring.scores", None)
        assert evaluate(out, *words, "--resume") == 0
        assert (out / "rows.csv").read_bytes() == before  # timing and all
    (gone,) = (out / "png" / "fusion-tau2").rglob("d.png")
    original = gone.read_bytes()
    gone.unlink()
    assert evaluate(out, *words, "--resume") == 0
    assert gone.read_bytes() == original


def test_another_evaluation_is_not_gone_on_with(
    data: Path, fusion: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (*RESTORE, "--data", data, "--ckpt", fusion)
    out = tmp_path / "out"
    assert evaluate(out, *words, "--tau", "2") == 0
    assert "exists; go on with --resume" in refusal(capsys, out, *words, "--tau", "2")
    found = refusal(capsys, out, *words, "--tau", "3", "--resume")
    assert "is another evaluation: methods.fusion-tau3: nothing, now" in found
    for option, value, told in (
        ("--tail", "ddim", "options.tail"),
        ("--seeds", "1", "seeds"),
        ("--variance", "posterior", "options.variance"),
        ("--start", "ccdf", "options.start"),
        ("--estimate", "restored", "options.estimate"),
    ):
        found = refusal(capsys, out, *words, "--tau", "2", "--resume", option, value)
        assert "is another evaluation" in found
        assert told in found
    (data / "d.png").write_bytes(encoded(picture(9, 20, 24)))
    assert "data: d changed" in refusal(capsys, out, *words, "--tau", "2", "--resume")


# Networks -----------------------------------------------------------------------------------------


def test_a_network_trained_for_another_degradation_must_be_asked_for(
    data: Path, fusion: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = ("--protocol", "sr-x4", "--data", data, "--tau", "2")
    for path, name in (
        (fusion, "fusion-restorer"),
        (fusion.with_name("restorer.safetensors"), "r"),
    ):
        told = f"--ckpt: {name} was trained with Downscale.scale 2, given 4; --other-degradation"
        found = refusal(capsys, out, *words, "--ckpt", path if "-" in name else f"r={path}")
        assert found == f"{told} measures it all the same"
    other = (
        "{class_path: Chain, init_args: {steps: [{class_path: Downscale, init_args: {scale: 2}}, "
    )
    other += "{class_path: JpegArtifacts}]}}"
    words = ("--protocol", "restore", "--degradation", other, *words[2:], "--ckpt", fusion)
    assert "was trained with Downscale, given Chain" in refusal(capsys, out, *words)
    assert evaluate(out, *words, "--other-degradation") == 0
    assert len(rows_of(out, method="fusion-tau2")) == 3
    # Nothing is known of pictures from files.
    halves = write_pictures(tmp_path / "halves", ["a", "b/c", "d"], 10, 12)
    words = ("--protocol", "restore", "--data", data, "--ckpt", fusion, "--tau", "2")
    assert evaluate(tmp_path / "given", *words, "--degraded", halves) == 0


def test_what_the_networks_cannot_do_is_said_before_anything_is_made(
    data: Path, fusion: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = (*RESTORE, "--data", data)
    short = save_fusion(fusion.with_name("short.safetensors"), config={"model": {"t_max": 3}})
    told = "--tau: 4 is above 3, the largest time that the fusion network was trained for"
    assert refusal(capsys, out, *words, "--ckpt", short, "--tau", "2,4,1") == told
    twice = refusal(capsys, out, *words, "--ckpt", fusion, "--ckpt", fusion, "--tau", "2")
    assert twice == "--ckpt: two are called fusion-restorer; name them: NAME=PATH"
    denoiser = refusal(capsys, out, *words, "--ckpt", fusion.with_name("denoiser.safetensors"))
    assert "restores no images" in denoiser or "noise level" in denoiser
    assert "nope: no such file" in refusal(capsys, out, *words, "--ckpt", tmp_path / "nope")


def test_networks_that_nothing_would_use_are_refused(
    data: Path, fusion: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (*RESTORE, "--data", data)
    restorer = fusion.with_name("restorer.safetensors")
    for name in ("denoiser", "restorer"):
        for ckpt in ((), ("--ckpt", restorer)):
            path = fusion.with_name(f"{name}.safetensors")
            found = refusal(capsys, tmp_path / "out", *words, *ckpt, f"--{name}", path)
            assert found == f"--{name}: no --ckpt is a fusion training, to use it"
    found = refusal(capsys, tmp_path / "out", *words, "--ckpt", fusion, "--restorer", "given")
    assert found == "--restorer: given: name the folder of the restored pictures with --degraded"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--tau", "5,5"), "5,5 holds a negative time, or one twice"),
        (("--tau", "5;6"), "5;6 is no list of times; write 5,50"),
        (("--tau", "5", "--eta", "0.5"), "--eta: only ddim steps have it"),
        (("--tau", "5", "--steps", "0"), "--steps: 0 is not within 1 to tau"),
        (("--tile", "20"), "--tile: 20 is below 64"),
        (("--baselines", "noisy"), "--baselines: restore has no use for it"),
        (("--batch", "2"), "--batch: restore has no use for it"),
        (("--require", "lpips-alex"), "--require lpips-alex: needs lpips-alexnet-"),
        (("--require", "dists"), "--require dists: is no perceptual metric of this protocol; it"),
        (("--prefix", "nowhere"), "nothing below --prefix nowhere"),
        (("--keys", "{folder}/missing"), "missing: no such file"),
    ],
)
def test_what_is_wrong_is_one_line(
    words: tuple[str, ...], told: str, data: Path, fusion: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    words = tuple(word.format(folder=tmp_path) for word in words)
    found = refusal(capsys, tmp_path / "out", *RESTORE, "--data", data, "--ckpt", fusion, *words)
    assert told in found


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("sr-x4", "--degradation", HALF), "--degradation: sr-x4 has its own; leave it out"),
        (("restore", "--degradation", "{class_path: Nope}"), "--degradation: Nope is not one of "),
        (("restore", "--degradation", "[1"), "--degradation: line 2: did not find"),
        (("restore", "--degradation", "{scale: 4}"), "--degradation: is no {class_path: NAME,"),
        (("restore", "--degradation", "scale"), "--degradation: expected options (key"),
    ],
)
def test_degradations_that_are_none_are_one_line(
    words: tuple[str, ...], told: str, data: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    found = refusal(capsys, tmp_path / "out", "--data", data, "--protocol", *words)
    assert found.startswith(told)


def test_pictures_must_be_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = refusal(capsys, tmp_path / "out", "--protocol", "sr-x4")
    assert found.startswith("--data: sr-x4 needs clean pictures: a folder, ")


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--degraded", "somewhere"), ("--degradation", HALF), ("--other-degradation", None),
        ("--tau", "5"), ("--denoiser", "somewhere"), ("--restorer", "somewhere"),
        ("--steps", "5"), ("--tail", "ddim"), ("--eta", "0.5"), ("--variance", "posterior"),
        ("--start", "ccdf"), ("--estimate", "restored"), ("--tile", "512"),
        ("--weights-dir", "somewhere"), ("--require", "niqe"),
    ],
)  # fmt: skip
def test_a_protocol_of_noise_refuses_the_options_of_restoration(
    option: str, value: str | None, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [option] if value is None else [option, value]
    found = refusal(capsys, tmp_path / "out", "--protocol", "denoise-25", "--data", data, *words)
    assert found == f"{option}: denoise-25 has no use for it"


def test_every_option_of_the_group_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """One that is added to the command must be added to those refused too."""
    from lit_restore.cli.evaluate_restoration import _OWN

    with pytest.raises(SystemExit):
        run("run", "--help")
    group = capsys.readouterr().out.split("restoration (protocols such as")[1]
    given = {line.split()[0] for line in group.splitlines() if line.startswith("  --")}
    assert len(given) == 13
    assert given <= {f"--{name.replace('_', '-')}" for name in _OWN} | {"--tau"}


def test_a_denoiser_of_a_noise_protocol_is_still_measured(data: Path, tmp_path: Path) -> None:
    network = write_network(tmp_path / "net.safetensors")
    words = ("--protocol", "denoise-25", "--data", data, "--ckpt", network)
    assert evaluate(tmp_path / "out", *words) == 0
    values = [float(row["psnr_rgb_b0"]) for row in rows_of(tmp_path / "out", method="net")]
    assert len(values) == 3
    assert np.isfinite(values).all()
