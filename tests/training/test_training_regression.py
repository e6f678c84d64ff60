"""Regression: losses by hand, the validation's border, and the runs that train it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from conftest import encoded, picture, write_tar
from PIL import Image
from support_restoration import EDSR_OPTIONS, SCALE, moved, write_recipe
from support_runs import assert_same_run, rows, train

from lit_restore.data.batch import Batch
from lit_restore.data.degradations import Downscale, describe
from lit_restore.errors import UserError
from lit_restore.networks import EDSR
from lit_restore.training import RestorationRegression
from lit_restore.weights import load_restorer
from lit_restore.weights.fused import recorded_degradation


def module_of(scale: int = SCALE, **options: Any) -> RestorationRegression:
    """In float64, off its start."""
    torch.manual_seed(0)
    net = moved(EDSR(**EDSR_OPTIONS, scale=scale))
    return RestorationRegression(net, **options).double()


def batch_of(count: int = 3, height: int = 16, width: int = 20, scale: int = SCALE) -> Batch:
    images = np.stack([picture(k, height, width) for k in range(count)]).transpose(0, 3, 1, 2)
    clean = torch.from_numpy(images / 255)
    return Batch(
        image=clean,
        degraded=torch.nn.functional.avg_pool2d(clean, scale),
        key=[str(k) for k in range(count)],
        position=torch.arange(count),
    )


@pytest.mark.parametrize("loss", ["l1", "charbonnier", "mse", "psnr"])
def test_the_loss_is_the_chosen_mean_of_the_error(loss: Any) -> None:
    module, batch = module_of(loss=loss), batch_of()
    error = (module.net(batch["degraded"]) - batch["image"]).detach().numpy()
    wanted = {
        "l1": np.abs(error).mean(),
        "charbonnier": np.sqrt(error**2 + 1e-6).mean(),
        "mse": (error**2).mean(),
        "psnr": np.log((error**2).mean((1, 2, 3)) + 1e-8).mean(),
    }
    found = module.losses(batch)
    assert float(found["loss"].detach()) == pytest.approx(wanted[loss], rel=1e-12)
    psnr = (-10 * np.log10((error**2).mean((1, 2, 3)))).mean()
    assert float(found["psnr"]) == pytest.approx(psnr, rel=1e-12)


@pytest.mark.parametrize(("scale", "given", "border"), [(2, None, 2), (4, None, 4), (1, None, 0),
                                                       (2, 0, 0), (1, 3, 3)])  # fmt: skip
def test_the_validation_leaves_out_the_scale_s_border(
    scale: int, given: int | None, border: int
) -> None:
    module, batch = module_of(scale, val_border=given), batch_of(2, 20, 24, scale)
    scores = module.score(module.net, batch)
    inner = slice(border, -border or None)
    for k, row in enumerate(scores):
        both = []
        with torch.no_grad():
            estimate = module.net(batch["degraded"])[k]
        for image in (estimate, batch["image"][k]):
            pixels = (255 * image.clamp(0, 1) + 0.5).floor()[:, inner, inner]
            both.append(pixels)
        mse = float((both[0] - both[1]).square().mean())
        assert row["psnr_rgb"] == pytest.approx(10 * math.log10(255**2 / mse), rel=1e-6)
        assert next(iter(row)) == "psnr_rgb"  # what checkpoints are kept by
        assert "psnr_y" in row


def test_pictures_and_predictions_are_of_the_clean_image_s_size() -> None:
    module, batch = module_of(), batch_of(2)
    shown = module.pictures(module.net, batch)
    assert list(shown) == ["degraded", "restored", "clean"]
    assert {tuple(image.shape) for image in shown.values()} == {(2, 3, 16, 20)}
    small = shown["degraded"][..., ::2, ::2]
    torch.testing.assert_close(small, batch["degraded"])
    restored = module.predict_step(batch, 0)["restored"]
    torch.testing.assert_close(restored, shown["restored"])
    undegraded = cast(Batch, {"image": batch["image"]})  # what is given to predict is degraded
    assert module.predict_step(undegraded, 0)["restored"].shape == (2, 3, 32, 40)


def test_data_without_degraded_images_or_of_another_scale_are_refused() -> None:
    module = module_of()
    with pytest.raises(UserError, match=r"^data\.degradation: the data hold no degraded images"):
        module.losses(cast(Batch, {"image": batch_of()["image"]}))
    line = r"^model\.net\.scale: a scale of 2 does not fit: the degraded images are 4 times smaller"
    with pytest.raises(UserError, match=line):
        module.losses(batch_of(scale=4))
    with pytest.raises(UserError, match=r"^model\.val_border: -1 is below 0"):
        module_of(val_border=-1)


# Runs ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("regression")
    recipe = write_recipe(folder, "regression", shards, {"loss": "mse"})
    assert train(recipe, folder / "run", output=folder / "log") == [0], (
        folder / "log.0"
    ).read_text()
    return folder / "run"


def test_a_run_validates_draws_and_says_what_its_data_were(run: Path) -> None:
    scores = [row for row in rows(run / "metrics.jsonl") if "psnr_rgb" in row]
    assert [row["samples_seen"] for row in scores] == [16, 32]
    assert all(row["psnr_rgb"] > 15 for row in scores)
    sheet = np.asarray(Image.open(run / "samples/grid-000000000032.png"))
    assert sheet.shape == (32, 3 * 32 + 2 * 4, 3)
    loaded = load_restorer(run)
    assert (loaded.net.scale, loaded.name) == (SCALE, "EDSR")
    found = recorded_degradation(loaded.info)
    assert found == describe(Downscale(SCALE))


def test_killed_and_resumed_it_ends_bit_equal(run: Path, shards: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, "regression", shards, {"loss": "mse"})
    assert train(recipe, tmp_path / "run", failpoint="train.step=kill@5") == [-9]
    assert train(recipe, tmp_path / "run") == [0]
    assert_same_run(run, tmp_path / "run")


def test_pictures_to_predict_from_are_degraded_already(
    run: Path, shards: Path, tmp_path: Path
) -> None:
    from support_runs import run_ranks

    from lit_restore.cli.train import main

    copy = tmp_path / "run"
    copy.symlink_to(run)
    argv = ["predict", "-c", str(run.parent / "recipe.yaml"), "--run_dir", str(copy)]
    argv += ["--data.predict", str(shards)]
    assert run_ranks(lambda rank: main(argv), 1, output=tmp_path / "log") == [0], (
        tmp_path / "log.0"
    ).read_text()
    names = sorted((run / "predictions").rglob("*.restored.png"))
    assert len(names) == 21
    with Image.open(names[0]) as found:
        assert found.size == (96, 80)  # twice what was given


def write_pairs(folder: Path, count: int = 5) -> Path:
    """Pictures of odd sizes beside halves of them."""
    members = []
    for k in range(count):
        clean = picture(k, 32 + 2 * k, 40)
        members.append((f"{k}.image.png", encoded(clean)))
        members.append((f"{k}.degraded.png", encoded(np.ascontiguousarray(clean[::2, ::2]))))
    folder.mkdir()
    write_tar(folder / "train-0.tar", members)
    return folder


def test_pairs_train_validate_and_are_shown_without_a_degradation(tmp_path: Path) -> None:
    """The grid shows the shards' own degraded picture, cut as the clean one is."""
    pairs = write_pairs(tmp_path / "pairs")
    recipe = write_recipe(
        tmp_path, "regression", pairs, {}, total_samples=8,
        data={"val": str(pairs), "val_crop": None, "degradation": None}, samples={"size": 25},
    )  # fmt: skip
    assert train(recipe, tmp_path / "run", output=tmp_path / "log") == [0], (
        tmp_path / "log.0"
    ).read_text()
    sheet = np.asarray(Image.open(next((tmp_path / "run/samples").iterdir())))
    assert sheet.shape == (24, 3 * 24 + 2 * 4, 3)
    degraded, _, clean = (sheet[:, left : left + 24] for left in (0, 28, 56))
    np.testing.assert_array_equal(degraded[::2, ::2], clean[::2, ::2])


def test_validation_images_that_nothing_degrades_are_refused_before_the_first_step(
    tmp_path: Path,
) -> None:
    """`photographs` is the default; pairs alone are no reason to leave it out."""
    pairs = write_pairs(tmp_path / "pairs")
    recipe = write_recipe(tmp_path, "regression", pairs, {}, data={"degradation": None})
    assert train(recipe, tmp_path / "run", output=tmp_path / "log") == [2]
    text = (tmp_path / "log.0").read_text()
    assert "error: data.val: holds no degraded images; give pairs, a data.degradation" in text
    assert not (tmp_path / "run").exists()


def test_validation_pictures_of_any_size_are_cut_to_the_scale(shards: Path, tmp_path: Path) -> None:
    odd = tmp_path / "odd"
    odd.mkdir()
    write_tar(odd / "v.tar", [(f"{k}.png", encoded(picture(k, 29 + k, 33))) for k in range(3)])
    recipe = write_recipe(
        tmp_path, "regression", shards, {}, total_samples=8,
        data={"val": str(odd), "val_crop": None}, samples={"size": 30},
    )  # fmt: skip
    assert train(recipe, tmp_path / "run", output=tmp_path / "log") == [0], (
        tmp_path / "log.0"
    ).read_text()
    sheet = np.asarray(Image.open(next((tmp_path / "run/samples").iterdir())))
    assert sheet.shape == (28, 3 * 30 + 2 * 4, 3)
