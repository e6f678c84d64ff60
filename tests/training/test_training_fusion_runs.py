"""Fusions as `train.py` runs them: what a checkpoint holds, resuming, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support_restoration import FUSION, digest, save_denoiser, save_restorer, write_recipe
from support_runs import assert_same_run, last, rows, run_ranks, train

from lit_restore.data.degradations import Downscale, GaussianBlur, describe
from lit_restore.data.degradations.recorded import as_record
from lit_restore.data.locate import open_source
from lit_restore.data.restored_shards import restore_shards
from lit_restore.networks import FusionNet
from lit_restore.weights import load_exported, load_fusion, save_exported
from lit_restore.weights.checkpoint import read_checkpoint


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A denoiser and a restoration network."""
    folder = tmp_path_factory.mktemp("networks")
    save_denoiser(folder / "denoiser.safetensors")
    save_restorer(folder / "restorer.safetensors")
    return folder


def names_in(folder: Path) -> dict[str, Any]:
    return {name: str(folder / f"{name}.safetensors") for name in ("denoiser", "restorer")}


@pytest.fixture(scope="module")
def run(shards: Path, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("fusion")
    recipe = write_recipe(place, "fusion", shards, names_in(folder))
    assert train(recipe, place / "run", output=place / "log") == [0], (place / "log.0").read_text()
    return place / "run"


def refused(recipe: Path, run: Path, *options: str) -> str:
    """The one error line of a run that is refused."""
    log = recipe.parent / "log"
    Path(f"{log}.0").unlink(missing_ok=True)
    assert train(recipe, run, *options, output=log) == [2], Path(f"{log}.0").read_text()
    text = Path(f"{log}.0").read_text()
    assert "Traceback" not in text
    (line,) = [line for line in text.splitlines() if line.startswith("error: ")]
    return line.removeprefix("error: ")


def test_a_checkpoint_holds_the_fusion_alone_and_names_what_it_is_over(
    run: Path, folder: Path
) -> None:
    saved = read_checkpoint(last(run))
    names = set(FusionNet(**FUSION).state_dict())
    assert saved.network.keys() == names
    assert saved.averages["ema"].keys() == names
    # Two moments of each parameter, and a step.
    assert {name.rpartition("/")[0].removeprefix("net.") for name in saved.optimizer} <= names
    assert len(saved.optimizer) == 3 * len(names)
    digests = {name: digest(folder / f"{name}.safetensors") for name in ("denoiser", "restorer")}
    assert saved.state["frozen"] == saved.state["fingerprint"]["model"]["frozen"] == digests


def test_a_run_validates_and_draws(run: Path) -> None:
    scores = [row for row in rows(run / "metrics.jsonl") if "psnr_rgb" in row]
    assert [row["samples_seen"] for row in scores] == [16, 32]
    assert {"psnr_rgb_restored", "psnr_rgb_t5", "psnr_rgb_t50", "psnr_rgb_t250"} < set(scores[0])
    sheet = np.asarray(Image.open(run / "samples/grid-000000000032.png"))
    assert sheet.shape == (32, 4 * 32 + 3 * 4, 3)


def test_killed_and_resumed_over_the_same_networks_it_ends_bit_equal(
    run: Path, shards: Path, folder: Path, tmp_path: Path
) -> None:
    recipe, mine = write_recipe(tmp_path, "fusion", shards, names_in(folder)), tmp_path / "run"
    assert train(recipe, mine, failpoint="train.step=kill@5") == [-9]
    other = save_denoiser(tmp_path / "other.safetensors", seed=1)
    line = refused(recipe, mine, f"--model.denoiser={other}")
    assert "another run's checkpoint: model.frozen.denoiser is " in line
    elsewhere = tmp_path / "copy.safetensors"  # another file, the same weights
    elsewhere.write_bytes((folder / "denoiser.safetensors").read_bytes())
    assert train(recipe, mine, f"--model.denoiser={elsewhere}") == [0]
    assert_same_run(run, mine)


def test_what_was_trained_is_loaded_over_its_networks(run: Path, folder: Path) -> None:
    model = load_fusion(run)
    assert model.source == last(run)
    averages = read_checkpoint(last(run)).averages["ema"]
    found = model.fusion.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in averages.items())
    there = load_exported(folder / "denoiser.safetensors").state_dict()
    assert all(torch.equal(t, there[k]) for k, t in model.denoiser.state_dict().items())
    assert isinstance(model.degradation, dict)


def test_validate_loads_the_run_and_predict_says_what_to_use_instead(
    run: Path, shards: Path, tmp_path: Path
) -> None:
    from lit_restore.cli.train import main

    recipe = str(run.parent / "recipe.yaml")
    argv = ["-c", recipe, "--run_dir", str(run)]
    log = tmp_path / "log"
    assert run_ranks(lambda rank: main(["validate", *argv]), 1, output=log) == [0]
    printed = (tmp_path / "log.0").read_text()
    wanted = [row for row in rows(run / "metrics.jsonl") if "psnr_rgb" in row][-1]
    assert f"psnr_rgb {wanted['psnr_rgb']:.4f}" in printed
    predict = ["predict", *argv, "--data.predict", str(shards)]
    assert run_ranks(lambda rank: main(predict), 1, output=tmp_path / "predict") == [2]
    told = (tmp_path / "predict.0").read_text()
    assert "error: task: " in told
    assert "lit-restore restore" in told


def test_restored_shards_train_the_same_fusion_without_a_restoration_network(
    shards: Path, folder: Path, tmp_path: Path
) -> None:
    """Whether a run knows that network or not; one that knows another is refused."""
    record = {"name": "Downscale", "options": {"scale": 2}}
    source = open_source(str(shards), key="SHARDS")
    made = tmp_path / "restored"
    names = names_in(folder)
    restore_shards(source, names["restorer"], made, degradation=record, progress=False)
    restorer = names.pop("restorer")
    options = {"total_samples": 8, "data": {"val": str(made), "val_crop": None}}
    runs = []
    for name, more in (("without", {}), ("with", {"restorer": restorer})):
        recipe = write_recipe(tmp_path / name, "fusion", made, {**names, **more}, **options)
        log = tmp_path / f"{name}.log"
        assert train(recipe, tmp_path / name / "run", output=log) == [0], Path(
            f"{log}.0"
        ).read_text()
        runs.append(tmp_path / name / "run")
    assert_same_run(*runs)
    other = str(save_restorer(tmp_path / "other.safetensors", 1, scale=2))
    recipe = write_recipe(tmp_path / "o", "fusion", made, {**names, "restorer": other}, **options)
    log = tmp_path / "other.log"
    assert train(recipe, tmp_path / "o" / "run", output=log) == [2]
    assert "holds what another network restored" in Path(f"{log}.0").read_text()


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--data.degradation=null"], "data.val: holds no degraded images; give pairs, a data.deg"),
        (["--data.degradation=null", "--data.val=null"],
         "data.degradation: the data hold no degraded images; set "),
        (["--data.degradation.scale=4"], "model.restorer: trained with Downscale.scale 2, given"),
        (["--model.restorer=null"], "data.val: holds no restored images; give a model.restorer, "),
        (["--model.restorer=null", "--data.val=null"],
         "model.restorer: is needed: the data hold no restored images"),
        (["--model.denoiser={restorer}"], "model.denoiser: {restorer} holds a EDSR, a denoiser is"),
        (["--model.denoiser=/nowhere"], "/nowhere: no such file"),
        (["--model.t_max=2000"], "model.t_max: 2000 is above steps (1000)"),
        (["--model.beta_max=2"], "model.beta_max: 2.0 is below beta_min 0.0001, or not within"),
        (["--model.net=UNet"], "model.net: there is no UNet; known: FusionNet, TimeAverage, Wav"),
        (
            ["--model.net.residual=both"],
            "model.net.residual expects one of none, average, got both",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_a_mistake_is_one_line_with_the_key(
    shards: Path, folder: Path, tmp_path: Path, options: list[str], line: str
) -> None:
    names = names_in(folder)
    recipe = write_recipe(tmp_path, "fusion", shards, names)
    given = [option.format(**names) for option in options]
    assert refused(recipe, tmp_path / "run", *given).startswith(line.format(**names))
    assert not (tmp_path / "run").exists()


def test_the_state_is_json_and_small(run: Path) -> None:
    """The frozen networks are recorded by name and hash, not stored."""
    state = json.loads((last(run) / "state.json").read_text())
    assert set(state["frozen"]) == {"denoiser", "restorer"}
    stored = sum(path.stat().st_size for path in last(run).iterdir())
    weights = 4 * sum(p.numel() for p in FusionNet(**FUSION).parameters())
    assert stored < 4 * weights + 60_000


def test_the_degradation_behind_restored_shards_is_recorded_and_compared(
    shards: Path, folder: Path, tmp_path: Path
) -> None:
    """Not that of the recipe, which is the validation's."""
    chain = {
        "name": "Chain",
        "options": {"steps": [describe(GaussianBlur()), describe(Downscale(2))]},
    }
    names = names_in(folder)
    source = open_source(str(shards), key="SHARDS")
    made = tmp_path / "restored"
    restore_shards(source, names["restorer"], made, degradation=chain, progress=False)
    recipe = write_recipe(tmp_path / "a", "fusion", made, names, total_samples=8)
    line = "data.degradation: trained with Chain, given Downscale; model.other_degradation: true"
    assert refused(recipe, tmp_path / "a" / "run").startswith(line)
    over = "--data.degradation=null", f"--data.val={made}", "--data.val_crop=null"
    told = "model.restorer: trained with Downscale, given Chain; model.other_degradation: true"
    assert refused(recipe, tmp_path / "a" / "run", *over).startswith(told)
    log = tmp_path / "log"
    allowed = (*over, "--model.other_degradation=true")
    assert train(recipe, tmp_path / "run", *allowed, output=log) == [0], Path(
        f"{log}.0"
    ).read_text()
    assert read_checkpoint(last(tmp_path / "run")).state["degradation"]["name"] == "Chain"
    model = load_fusion(tmp_path / "run")
    told = [as_record(d, where="") for d in (model.degradation, model.restorer_degradation)]
    assert [d and d["name"] for d in told] == ["Chain", "Downscale"]


def test_a_denoiser_of_less_noise_than_t_max_is_refused(
    shards: Path, folder: Path, tmp_path: Path
) -> None:
    weak = tmp_path / "weak.safetensors"
    net = load_exported(folder / "denoiser.safetensors")
    save_exported(weak, net, info={"config": {"model": {"sigma_max": 0.1}}})
    recipe = write_recipe(tmp_path, "fusion", shards, {**names_in(folder), "denoiser": str(weak)})
    line = f"model.denoiser: {weak} was trained for noise of up to 25.5 of 255; t_max 250 has 243"
    assert refused(recipe, tmp_path / "run") == line
