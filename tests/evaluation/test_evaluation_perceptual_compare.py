"""Perceptual columns in a comparison: values, blanks with reasons, deltas, protocols."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import picture
from support_evaluation import run, write_pictures

from lit_restore.errors import UserError
from lit_restore.evaluation.compare import CompareOptions, compare
from lit_restore.evaluation.perceptual import deltas, meters
from lit_restore.evaluation.perceptual.deltas import open_topiq, topiq_delta
from lit_restore.evaluation.perceptual.meters import OPENERS, open_meters
from lit_restore.evaluation.perceptual.names import PERCEPTUAL
from lit_restore.evaluation.perceptual.weights import VARIABLE, MissingWeights, WeightFolders
from lit_restore.evaluation.protocols import PROTOCOLS, find_protocol
from lit_restore.evaluation.table import plain_text

PRESETS = ("sr-x4", "deblur", "restore")
NOWHERE = WeightFolders(())


@pytest.fixture(autouse=True)
def no_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.delenv(VARIABLE, raising=False)


@pytest.fixture
def sides(tmp_path: Path) -> dict[str, str]:
    target = write_pictures(tmp_path / "target", ["a", "b", "c"], 40, 44)
    pred = write_pictures(tmp_path / "pred", ["b", "c", "a"], 40, 44)  # others of those names
    return {"pred": str(pred), "target": str(target)}


def compared(sides: dict[str, str], out: Path, protocol: str, **more: object):
    options = {"preds": (f"net={sides['pred']}",), "target": sides["target"], **more}
    return compare(CompareOptions(protocol=protocol, out=out, pictures=0, **options))[0]


def rows_of(out: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((out / "rows.csv").read_text().splitlines()))


# Protocols ----------------------------------------------------------------------------------------


def test_presets_have_the_columns_of_their_task() -> None:
    pixels = ["psnr_rgb_b4", "ssim_rgb_b4", "psnr_y_b4", "ssim_y_b4"]
    rgb = ["psnr_rgb_b0", "ssim_rgb_b0"]
    expected = {
        "sr-x4": [*pixels, "lpips-alex", "niqe"],
        "deblur": [*rgb, "lpips-alex"],
        "restore": [*rgb, "lpips-alex", "niqe"],
    }
    for name, columns in expected.items():
        assert [column.name for column in PROTOCOLS[name].columns] == columns


@pytest.mark.parametrize("name", PRESETS)
def test_the_words_name_the_weights_and_no_border_that_is_not_cut(name: str) -> None:
    words = "\n".join(find_protocol(f"{name}+topiq_d").words)
    assert f"border (b): {4 if name == 'sr-x4' else 0} pixels" in words
    for part in ("df73285e35b22355", "2b566cc3a4d6f0a7", "TOPIQ_D = |"):
        assert part in words


def test_columns_are_added_by_name() -> None:
    protocol = find_protocol("deblur+niqe_d+lpips-alex+dists")
    assert [c.name for c in protocol.columns][2:] == ["lpips-alex", "niqe_d", "dists"]
    assert protocol.name == "deblur+niqe_d+dists"
    assert protocol.identity() != PROTOCOLS["deblur"].identity()
    assert find_protocol("restore+niqe") == PROTOCOLS["restore"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("restore+nique", "no such metric; did you mean niqe"),
        ("restor+niqe", "no such protocol; did you mean restore"),
        ("denoise-25+niqe", "denoise-25 takes no more columns"),
    ],
)
def test_columns_that_cannot_be_added(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        find_protocol(name)


def test_every_metric_can_be_opened_and_is_named_apart() -> None:
    assert list(OPENERS) == list(PERCEPTUAL)
    assert len({named.title for named in PERCEPTUAL.values()}) == len(PERCEPTUAL)


# Blanks -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PRESETS)
def test_missing_weights_are_a_blank_with_its_reason(
    name: str, sides: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = ["compare", "--pred", sides["pred"], "--target", sides["target"], "--pictures", "0"]
    assert run(*words, "--protocol", name, "--out", out) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "lpips-alex is blank, needs lpips-alexnet-2b566cc3.safetensors" in printed
    assert "looked in" in printed
    for row in rows_of(out):
        assert row["lpips-alex"] == ""
        assert "lpips-alex: needs" in row["blanks"]
        assert float(row[PROTOCOLS[name].columns[0].name]) > 5
    (line,) = csv.DictReader((out / "table.csv").read_text().splitlines())
    assert (line["lpips-alex"], line["n"]) == ("", "3")
    identity = json.loads((out / "run.json").read_text())
    assert "lpips-alex" in identity["perceptual"]["missing"]


def test_what_is_required_must_be_there(sides: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(MissingWeights, match="--require niqe: needs niqe_pris"):
        compared(sides, tmp_path / "out", "restore", require=("niqe",))
    with pytest.raises(UserError, match="--require lpips: is no perceptual metric of this"):
        compared(sides, tmp_path / "out", "restore", require=("lpips",))
    assert not (tmp_path / "out").exists()


def test_other_weights_stop_it_before_anything_is_measured(
    sides: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "w").mkdir()
    (tmp_path / "w" / "niqe_pris_params.npz").write_bytes(b"other")
    with pytest.raises(UserError, match="is not the file of that name"):
        compared(sides, tmp_path / "out", "restore", weights_dir=tmp_path / "w")
    assert not (tmp_path / "out").exists()


def test_values_are_averaged_and_blanks_are_not(
    sides: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def bright(output: np.ndarray, target: np.ndarray) -> float:
        if (output == picture(0, 40, 44)).all():
            raise ValueError("has no score")
        return float(output.mean() - target.mean())

    monkeypatch.setitem(meters.OPENERS, "niqe", lambda folders: bright)
    outcome = compared(sides, tmp_path / "out", "restore", require=("niqe",))
    images = [picture(k, 40, 44) for k in range(3)]
    # Under the names a, b, c the outputs are 2, 0 and 1; the blank one is b.
    expected = {"a": images[2].mean() - images[0].mean(), "c": images[1].mean() - images[2].mean()}
    found = {row["key"]: row["niqe"] for row in rows_of(tmp_path / "out")}
    assert found.pop("b") == ""
    assert {k: float(v) for k, v in found.items()} == pytest.approx(expected)
    mean = outcome.table.lines[0].means["niqe"]
    assert mean == pytest.approx(np.mean(list(expected.values())))
    text = " ".join(plain_text(outcome.table).split())
    assert "niqe left out for 1 of 3 rows, has no score: b (net)" in text
    assert "lpips-alex is blank, needs" in text


def test_a_failed_picture_does_not_hide_that_a_column_is_blank(
    sides: dict[str, str], tmp_path: Path
) -> None:
    Path(sides["pred"], "b.png").write_bytes(b"oops")
    text = plain_text(compared(sides, tmp_path / "out", "deblur").table)
    assert "lpips-alex is blank, needs" in text
    assert "2 of 3" in text


def test_a_value_that_is_none_is_a_blank(
    sides: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(meters.OPENERS, "niqe", lambda folders: lambda a, b: float("nan"))
    outcome = compared(sides, tmp_path / "out", "restore")
    assert outcome.table.lines[0].means["niqe"] is None
    assert "niqe: is nan" in rows_of(tmp_path / "out")[0]["blanks"]


# Deltas -------------------------------------------------------------------------------------------


def test_the_delta_is_the_distance_of_two_scores() -> None:
    def score(image: np.ndarray) -> float:
        return float(image.mean()) / 10

    a, b = np.full((4, 4, 3), 30, np.uint8), np.full((4, 4, 3), 80, np.uint8)
    assert topiq_delta(score, a, b) == topiq_delta(score, b, a) == 5
    assert topiq_delta(score, a, a) == 0


@pytest.mark.parametrize("name", ["niqe_d", "topiq_d"])
def test_deltas_are_of_their_own_score(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def opener(factor: float) -> Callable[[WeightFolders], Callable[[np.ndarray], float]]:
        return lambda folders: lambda image: factor * float(image.mean())

    monkeypatch.setattr(meters, "open_niqe", opener(1.0))
    monkeypatch.setattr(meters, "open_topiq", opener(0.1))
    a, b = np.full((4, 4, 3), 30, np.uint8), np.full((4, 4, 3), 80, np.uint8)
    expected = {"niqe_d": 50, "topiq_d": 5}[name]
    found = open_meters(["psnr", name], NOWHERE)
    assert list(found.functions) == [name]
    assert found.functions[name](a, b) == pytest.approx(expected)


def test_without_pyiqa_the_column_is_blank_and_niqe_d_is_another() -> None:
    if deltas.importlib.util.find_spec("pyiqa") is not None:
        pytest.skip("pyiqa is installed")
    found = open_meters(["topiq_d"], NOWHERE)
    assert not found.functions
    assert "needs pyiqa, which is for non-commercial use" in found.missing["topiq_d"]
    assert "niqe_d needs none of it" in found.missing["topiq_d"]


def test_the_users_pyiqa_gets_the_users_file_and_fetches_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "pyiqa.py").write_text(
        "given = {}\n"
        "def create_metric(name, **options):\n"
        "    given.update(options, name=name)\n"
        "    return lambda x: x.mean() * x.shape[1]\n"
    )
    monkeypatch.syspath_prepend(tmp_path / "site")
    with pytest.raises(MissingWeights, match=deltas.TOPIQ.file):
        open_topiq(NOWHERE)
    weights = tmp_path / deltas.TOPIQ.file
    weights.write_bytes(b"weights")
    with pytest.raises(UserError, match="is not the file of that name"):
        open_topiq(WeightFolders((tmp_path,)))
    digest = hashlib.sha256(b"weights").hexdigest()
    monkeypatch.setattr(deltas, "TOPIQ", dataclasses.replace(deltas.TOPIQ, sha256=digest))
    score = open_topiq(WeightFolders((tmp_path,)))
    assert score(np.full((8, 8, 1), 51, np.uint8)) == pytest.approx(3 * 0.2)
    import pyiqa

    assert pyiqa.given["name"] == "topiq_nr"
    assert pyiqa.given["pretrained_model_path"] == str(weights)
    assert pyiqa.given["backbone_pretrain"] is False
    monkeypatch.delitem(sys.modules, "pyiqa")
