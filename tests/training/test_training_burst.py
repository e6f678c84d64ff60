"""Training on bursts: losses by hand, bursts of (seed, position), scores in sRGB, and a run."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from conftest import encoded, picture, write_tar
from PIL import Image
from support_runs import RECIPE, assert_same_run, merged, rows, train
from torch import Tensor, nn

from lit_restore.data.batch import Batch
from lit_restore.data.bursts import BurstOptions, process, synthesize_burst
from lit_restore.errors import UserError
from lit_restore.networks import Network
from lit_restore.seeding import torch_generator
from lit_restore.training import BurstRegression

FRAMES, BORDER = 3, 4
OPTIONS = {"max_translation": 4.0, "border": BORDER}
BSRT: dict[str, Any] = {
    "frames": 3, "width": 8, "embed": 12, "entry_depth": 1, "depths": [1], "heads": 2, "groups": 2,
    "drop_path": 0.0,
}  # fmt: skip


class Shuffled(Network):
    """A convolution of all frames, and a pixel shuffle: the least that a burst network does."""

    def __init__(self, frames: int = FRAMES) -> None:
        super().__init__()
        self.frames = frames
        self.conv = nn.Conv2d(4 * frames, 3 * 64, 1)

    def forward(self, burst: Tensor) -> Tensor:
        return nn.functional.pixel_shuffle(self.conv(burst.flatten(1, 2)), 8)


def module_of(**options: Any) -> BurstRegression:
    torch.manual_seed(0)
    return BurstRegression(Shuffled(), **{"val_border": 0, **OPTIONS, **options})


def batch_of(count: int = 2, size: int = 32 + 2 * BORDER, first: int = 0) -> Batch:
    images = np.stack([picture(first + k, size, size + 8) for k in range(count)])
    return Batch(
        image=torch.from_numpy(images.transpose(0, 3, 1, 2) / np.float32(255)),
        key=[f"k{first + k}" for k in range(count)],
        position=torch.arange(first, first + count),
    )


def made(image: Tensor, seed: int, name: int | str) -> Any:
    options = BurstOptions(max_translation=4.0, border=BORDER)
    return synthesize_burst(image, FRAMES, torch_generator(seed, name, "burst"), options)


# Bursts and losses --------------------------------------------------------------------------------


def test_bursts_are_a_function_of_seed_and_position() -> None:
    batch, module = batch_of(3), module_of(seed=5)
    names = batch["position"].tolist()
    bursts, targets, parameters = module.bursts(batch["image"], names, 5)
    assert bursts.shape == (3, FRAMES, 4, 4, 5)
    assert targets.shape == (3, 3, 32, 40)
    for k, name in enumerate(names):
        burst, target, drawn = made(batch["image"][k], 5, name)
        assert torch.equal(bursts[k], burst)
        assert torch.equal(targets[k], target)
        assert torch.equal(parameters.motion[k], drawn.motion)
    alone, *_ = module.bursts(batch["image"][1:2], names[1:2], 5)
    assert torch.equal(alone, bursts[1:2])  # whatever else is in the batch
    for seed, other in ((6, names), (5, [7, 8, 9])):
        assert not torch.equal(module.bursts(batch["image"], other, seed)[0], bursts)


@pytest.mark.parametrize("loss", ["l1", "charbonnier", "mse", "psnr"])
def test_the_loss_is_of_the_linear_picture(loss: Any) -> None:
    module, batch = module_of(loss=loss, seed=3), batch_of()
    errors = []
    for image, position in zip(batch["image"], (0, 1), strict=True):
        burst, target, _ = made(image, 3, position)
        with torch.no_grad():
            errors.append((module.net(burst[None])[0] - target).double().numpy())
    error = np.stack(errors)
    mse = (error**2).mean((1, 2, 3))
    wanted = {
        "l1": np.abs(error).mean(),
        "charbonnier": np.sqrt(error**2 + 1e-6).mean(),
        "mse": mse.mean(),
        "psnr": np.log(mse + 1e-8).mean(),
    }
    found = module.losses(batch)
    assert float(found["loss"].detach()) == pytest.approx(wanted[loss], rel=1e-5)
    assert float(found["psnr"]) == pytest.approx((-10 * np.log10(mse)).mean(), rel=1e-5)


def test_a_few_steps_lower_the_loss() -> None:
    module, batch = module_of(), batch_of(4)
    optimizer = torch.optim.Adam(module.net.parameters(), 1e-2)
    losses = []
    for _ in range(40):
        loss = module.losses(batch)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.35 * losses[0]
    assert all(p.grad is not None for p in module.net.parameters())


# Validation ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("border", [0, 6])
def test_scores_are_of_8_bits_of_srgb_inside_the_border(border: int) -> None:
    module, batch = module_of(val_border=border, seed=9), batch_of()
    with torch.no_grad():
        scores = module.score(module.net, batch)
    inner = slice(border, -border or None)
    for row, image, key in zip(scores, batch["image"], batch["key"], strict=True):
        burst, target, drawn = made(image, 0, key)  # the same at every validation, of every seed
        with torch.no_grad():
            estimate = process(module.net(burst[None])[0], drawn)
        pixels = [
            (255 * one.clamp(0, 1) + 0.5).floor().double()[:, inner, inner]
            for one in (estimate, process(target, drawn))
        ]
        mse = float((pixels[0] - pixels[1]).square().mean())
        assert row == {"psnr_rgb": pytest.approx(10 * math.log10(255**2 / mse), rel=1e-6)}


def test_pictures_are_srgb_of_the_result_s_size() -> None:
    module, batch = module_of(), batch_of()
    with torch.no_grad():
        shown = module.pictures(module.net, batch)
    assert list(shown) == ["burst", "restored", "clean"]
    for image in shown.values():
        assert image.shape == (2, 3, 32, 40)
        assert 0 <= float(image.min()) <= float(image.max()) <= 1
    inner = batch["image"][..., BORDER : BORDER + 32, BORDER : BORDER + 40]
    # The truth is the picture itself, but where the camera's white clipped it.
    assert float((shown["clean"] - inner).abs().median()) < 0.01
    burst, _, drawn = made(batch["image"][1], 0, "k1")
    rgb = burst[0, [0, 1, 3]].repeat_interleave(8, -1).repeat_interleave(8, -2)
    torch.testing.assert_close(shown["burst"][1], process(rgb, drawn).clamp(0, 1))
    # Frame and truth show one scene.
    error = [float((shown["burst"] - clean).abs().mean()) for clean in (inner, inner.flip(0))]
    assert error[0] < 0.8 * error[1]


# What is too small --------------------------------------------------------------------------------


def test_pictures_too_small_for_a_burst_name_the_option_that_cut_them() -> None:
    module, small = module_of(), batch_of(size=8 + 2 * BORDER - 1)
    told = r"makes no burst; RGB pictures of at least 16 pixels a side do"
    with pytest.raises(UserError, match=rf"^data\.crop: \(3, 15, 23\) {told}"):
        module.losses(small)
    with pytest.raises(UserError, match=rf"^data\.val_crop: .*{told}"):
        module.score(module.net, small)
    with pytest.raises(UserError, match=rf"^samples\.size: .*{told}"):
        module.pictures(module.net, small)


def test_a_border_that_leaves_nothing_is_one_line() -> None:
    module = module_of(val_border=16)
    with pytest.raises(UserError, match=r"^model\.val_border: 40x32 .* is too small for border 16"):
        module.score(module.net, batch_of())


@pytest.mark.parametrize("name", ["max_translation", "max_rotation", "border", "val_border"])
def test_negative_options_are_refused(name: str) -> None:
    with pytest.raises(UserError, match=rf"^model\.{name}: -1 is below 0"):
        module_of(**{name: -1})


# A run --------------------------------------------------------------------------------------------


def write_recipe(folder: Path, shards: Path, **over: Any) -> Path:
    base = {
        "task": "burst",
        "total_samples": 8,
        "data": {"train": str(shards), "global_batch": 2, "crop": 24, "val_crop": 32},
        "checkpoint": {"every": 4},
        "validation": {"every": 4},
        "metrics": {"every": 4},
        "samples": {"every": 8, "size": 24},
    }
    model = {
        "net": {"class_path": "BSRT", "init_args": BSRT}, "optimizer": {"lr": 1e-3},
        "val_border": 2, **OPTIONS,
    }  # fmt: skip
    recipe = {**{k: v for k, v in RECIPE.items() if k != "model"}, "model": model}
    folder.mkdir(exist_ok=True)
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(merged(merged(recipe, base), over)))
    return path


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    write_tar(folder / "train-0.tar", [(f"{k}.png", encoded(picture(k))) for k in range(6)])
    return folder


@pytest.fixture(scope="module")
def run(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("burst")
    assert train(write_recipe(folder, shards), folder / "run", output=folder / "log") == [0], (
        folder / "log.0"
    ).read_text()
    return folder / "run"


def test_a_run_validates_and_shows_burst_result_and_truth(run: Path) -> None:
    scores = [row for row in rows(run / "metrics.jsonl") if "psnr_rgb" in row]
    assert [row["samples_seen"] for row in scores] == [4, 8]
    assert all(row["psnr_rgb"] > 5 for row in scores)
    losses = [row for row in rows(run / "metrics.jsonl") if "loss" in row]
    assert all(np.isfinite([row["loss"], row["psnr"]]).all() for row in losses)
    sheet = np.asarray(Image.open(run / "samples/grid-000000000008.png"))
    assert sheet.shape == (16, 3 * 16 + 2 * 4, 3)


@pytest.mark.slow
def test_killed_and_resumed_it_ends_bit_equal(run: Path, shards: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, shards)
    assert train(recipe, tmp_path / "run", failpoint="train.step=kill@4") == [-9]
    assert train(recipe, tmp_path / "run") == [0]
    assert_same_run(run, tmp_path / "run")


def test_a_crop_too_small_is_one_clear_line(shards: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, shards, data={"crop": 8})
    assert train(recipe, tmp_path / "run", output=tmp_path / "log") == [2]
    errors = [k for k in (tmp_path / "log.0").read_text().splitlines() if k.startswith("error")]
    told = "(3, 8, 8) makes no burst; RGB pictures of at least 16 pixels a side do"
    assert errors == [f"error: data.crop: {told}"]
