"""`lit-restore sweep-tau`: one line of curve.csv for each tau, and a picture where one can be."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from support_evaluation import pixels_of, write_pictures
from support_restoring import HALF, RESTORE, evaluate, hide_weights, networks

from lit_restore.cli.main import main
from lit_restore.evaluation.metrics import Values
from lit_restore.evaluation.perceptual import meters


@pytest.fixture(autouse=True)
def no_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hide_weights(tmp_path, monkeypatch)


@pytest.fixture(scope="module")
def fusion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return networks(tmp_path_factory.mktemp("made"))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_pictures(tmp_path / "data", ["a", "b"], 20, 24)


def sweep(out: Path, *words: str | Path) -> int:
    return main([str(word) for word in ("sweep-tau", *words, "--out", out)])


def curve_of(out: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((out / "curve.csv").read_text().splitlines()))


def spread(output: Values, target: Values) -> float:
    """A meter that is there: larger for rougher pictures."""
    return float(np.std(output))


def test_the_curve_is_the_table_by_tau_the_restorer_first(
    data: Path, fusion: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (*RESTORE, "--data", data, "--ckpt", fusion, "--tau", "12,3,0,5")
    assert sweep(tmp_path / "out", *words) == 0
    rows = curve_of(tmp_path / "out")
    assert [row["tau"] for row in rows] == ["0", "3", "5", "12"]
    assert list(rows[0]) == ["tau", "psnr_rgb_b0", "ssim_rgb_b0", "lpips-alex", "niqe"]
    assert {row["niqe"] for row in rows} == {""}
    table = csv.DictReader((tmp_path / "out" / "table.csv").read_text().splitlines())
    lines = {line["method"]: line for line in table}
    for row in rows:
        method = "fusion-restorer" if row["tau"] == "0" else f"fusion-tau{row['tau']}"
        for column in ("psnr_rgb_b0", "ssim_rgb_b0"):
            assert row[column] == lines[method][column]
    assert len({row["psnr_rgb_b0"] for row in rows}) == 4
    # The numbers are those of the other command.
    assert evaluate(tmp_path / "other", *words) == 0
    other = (tmp_path / "other" / "table.csv").read_text().splitlines()
    assert {line.split(",")[2] for line in other[2:]} == {row["psnr_rgb_b0"] for row in rows}
    printed = capsys.readouterr()
    assert not (tmp_path / "out" / "curve.png").exists()
    assert "note: no perceptual column has a value, so there is no curve.png" in printed.err


def test_a_perceptual_column_makes_the_picture(
    data: Path, fusion: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setitem(meters.OPENERS, "niqe", lambda folders: spread)
    words = (*RESTORE, "--data", data, "--ckpt", fusion)
    assert sweep(tmp_path / "out", *words, "--tau", "2,4") == 0
    for row in curve_of(tmp_path / "out"):
        method = "fusion-restorer" if row["tau"] == "0" else f"fusion-tau{row['tau']}"
        pictures = [pixels_of(p) for p in (tmp_path / "out" / "png" / method).rglob("*.png")]
        assert len(pictures) == 2
        assert float(row["niqe"]) == pytest.approx(np.mean([p.std() for p in pictures]))
    assert pixels_of(tmp_path / "out" / "curve.png").shape == (640, 900, 3)
    assert f"in {tmp_path}/out: curve.csv, curve.png, and all that" in capsys.readouterr().out
    # tau 0 alone is a curve of one point.
    assert sweep(tmp_path / "one", *words, "--tau", "0") == 0
    assert [row["tau"] for row in curve_of(tmp_path / "one")] == ["0"]
    assert (tmp_path / "one" / "curve.png").exists()


def test_a_column_that_a_tau_lacks_is_not_drawn(
    data: Path, fusion: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def some(output: Values, target: Values) -> float:
        if np.mean((output.astype(float) - target) ** 2) > 5000:  # as after two steps of such nets
            raise ValueError("too far off")
        return 1.0

    monkeypatch.setitem(meters.OPENERS, "niqe", lambda folders: some)
    words = (*RESTORE, "--data", data, "--ckpt", fusion, "--tau", "2")
    assert sweep(tmp_path / "out", *words) == 0
    assert [row["niqe"] for row in curve_of(tmp_path / "out")][1] == ""
    assert not (tmp_path / "out" / "curve.png").exists()


def test_a_tau_without_a_psnr_has_no_place_in_the_picture(
    data: Path, fusion: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where every output is the truth itself."""
    monkeypatch.setitem(meters.OPENERS, "niqe", lambda folders: spread)
    endless = lambda *pictures, **how: float("inf")  # noqa: E731
    monkeypatch.setattr("lit_restore.evaluation.scoring.measure", endless)
    words = (*RESTORE, "--data", data, "--ckpt", fusion, "--tau", "2")
    assert sweep(tmp_path / "out", *words) == 0
    assert {row["psnr_rgb_b0"] for row in curve_of(tmp_path / "out")} == {""}
    assert not (tmp_path / "out" / "curve.png").exists()


def test_it_goes_on_with_its_folder_and_keeps_its_command(
    data: Path, fusion: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    words = (*RESTORE, "--data", data, "--ckpt", fusion, "--tau", "2")
    argv = [str(word) for word in ("sweep-tau", *words, "--out", tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["lit-restore", *argv])
    assert main(argv) == 0
    before = {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir() if p.is_file()}
    assert main([*argv, "--resume"]) == 0
    after = {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir() if p.is_file()}
    assert before == after
    command = json.loads((tmp_path / "out" / "run.json").read_text())["command"]
    assert command.startswith("lit-restore sweep-tau --protocol restore --degradation '{class")
    assert command in (tmp_path / "out" / "table.txt").read_text().splitlines()  # to be copied
    capsys.readouterr()
    assert main(argv) == 2
    assert "exists; go on with --resume" in capsys.readouterr().err


def test_a_picture_that_fails_is_told_by_the_exit_code(
    data: Path, fusion: Path, tmp_path: Path
) -> None:
    (data / "c.png").write_bytes(b"none")
    words = (*RESTORE, "--data", data, "--ckpt", fusion, "--tau", "2")
    assert sweep(tmp_path / "out", *words) == 3
    assert [row["tau"] for row in curve_of(tmp_path / "out")] == ["0", "2"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ((*RESTORE, "--ckpt", "f={fusion}"), "--ckpt f={fusion}: is named by the sweep; give the"),
        ((*RESTORE, "--ckpt", "{restorer}"), "--ckpt {restorer}: holds a EDSR, which has no tau;"),
        ((*RESTORE, "--ckpt", "{denoiser}"), "--ckpt {denoiser}: holds a UNet, which has no tau;"),
        ((*RESTORE, "--ckpt", "nowhere"), "nowhere: no such file"),
        (("--protocol", "denoise-25", "--ckpt", "{fusion}"), "--protocol denoise-25: removes"),
        (("--protocol", "denoise-25", "--degradation", HALF, "--ckpt", "{fusion}"), "--protocol d"),
        (("--protocol", "sr-x5", "--ckpt", "{fusion}"), "--protocol sr-x5: no such protocol; did"),
        (("--ckpt", "{fusion}", "--tau", "2"), "--ckpt: fusion-restorer was trained with Downsc"),
        ((*RESTORE, "--ckpt", "{fusion}", "--tau", "999"), "--tau: 999 is above 250, the largest"),
        ((*RESTORE, "--ckpt", "{fusion}", "--eta", "1"), "--eta: only ddim steps have it"),
    ],
)
def test_what_is_wrong_is_one_line_and_nothing_is_written(
    words: tuple[str, ...], told: str, data: Path, fusion: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    names = {name: fusion.with_name(f"{name}.safetensors") for name in ("denoiser", "restorer")}
    given = [
        word if "class_path" in word else word.format(fusion=fusion, **names) for word in words
    ]
    assert sweep(tmp_path / "out", "--data", data, *given) == 2
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1
    assert printed.startswith(f"error: {told.format(fusion=fusion, **names)}")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written_is_one_line(
    data: Path, fusion: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (*RESTORE, "--data", data, "--ckpt", fusion, "--tau", "2")
    assert sweep(Path("/proc/nowhere"), *words) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: /proc/nowhere: cannot write (")
    assert printed.endswith("choose a place of yours with --out\n")
