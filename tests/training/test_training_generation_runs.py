"""Generations as `train.py` runs them: grids, latents, fine-tunes, and what is refused."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from conftest import write_tar
from PIL import Image
from support_autoencoder import save_autoencoder
from support_generation import DIMSUM, DIT, write_colours, write_recipe
from support_runs import last, rows, train

from lit_restore.data.latent_shards import LatentOptions, encode_shards
from lit_restore.data.locate import open_source
from lit_restore.errors import UserError
from lit_restore.networks import DiMSUM
from lit_restore.training.fitting import check_autoencoder
from lit_restore.weights.fine_tune import initialise
from lit_restore.weights.loading import load_network

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_colours(tmp_path_factory.mktemp("colours"))


def refused(recipe: Path, *options: str) -> str:
    """The error line of a run that is refused, and leaves nothing behind."""
    run, log = recipe.parent / "run", recipe.parent / "log"
    Path(f"{log}.0").unlink(missing_ok=True)
    codes = train(recipe, run, *options, output=log)
    text = Path(f"{log}.0").read_text()
    assert codes == [2], text
    assert "Traceback" not in text
    assert not run.exists()
    lines = [line for line in text.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    return lines[0].removeprefix("error: ")


# Grids --------------------------------------------------------------------------------------------


def test_grids_are_drawn_in_a_square_when_due_and_at_the_end_without_validation_data(
    colours: Path, tmp_path: Path
) -> None:
    recipe = write_recipe(tmp_path, colours, samples={"every": 24, "count": 5})
    assert train(recipe, tmp_path / "run") == [0]
    pictures = sorted((tmp_path / "run/samples").iterdir())
    assert [path.stem[-2:] for path in pictures] == ["24", "48", "64"]
    sheet = np.asarray(Image.open(pictures[-1]))
    assert sheet.shape == (2 * 8 + 4, 3 * 8 + 2 * 4, 3)
    assert (sheet[12:, 24:] == 255).all()  # five pictures in two rows of three
    assert not (sheet[12:, 12:20] == 255).all()


def test_a_slow_grid_says_that_it_goes_on(colours: Path, tmp_path: Path) -> None:
    from lit_restore.callbacks import samples

    recipe = write_recipe(tmp_path, colours, total_samples=8, samples={"count": 1})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(samples, "_PATIENCE", 0.0)
        assert train(recipe, tmp_path / "run", output=tmp_path / "log") == [0]
    assert "drawing a grid: 2 calls of the network" in (tmp_path / "log.0").read_text()


# Latents ------------------------------------------------------------------------------------------


def write_latents(folder: Path) -> Path:
    """Stored posteriors (picture and mirror image, mean and deviation) of eight samples."""
    folder.mkdir()
    draw = np.random.default_rng(0)
    members = []
    for number in range(8):
        content = io.BytesIO()
        np.save(content, draw.normal(size=(2, 2, 4, 8, 8)).astype(np.float16) ** 2)
        members.append((f"{number}.npy", content.getvalue()))
    write_tar(folder / "train-0.tar", members)
    return folder


def test_latents_are_trained_on_and_shown_through_their_autoencoder(tmp_path: Path) -> None:
    shards, vae = write_latents(tmp_path / "s"), save_autoencoder(tmp_path / "vae")
    recipe = write_recipe(
        tmp_path, shards, {**DIMSUM, "channels": 4, "classes": 0}, total_samples=16,
        data={"val": str(shards), "crop": None, "val_crop": None}, samples={"count": 2},
        model={"vae": str(vae), "score": {"count": 4, "metrics": ["fd"]}},
    )  # fmt: skip
    assert train(recipe, tmp_path / "run", output=tmp_path / "log") == [0], (
        tmp_path / "log.0"
    ).read_text()
    scores = rows(tmp_path / "run/metrics.jsonl")[-1]
    assert (scores["n_real"], scores["n_fake"]) == (8, 4)
    sheet = np.asarray(Image.open(next((tmp_path / "run/samples").iterdir())))
    assert sheet.shape == (32, 2 * 32 + 4, 3)  # a latent of 8 is a picture of 32
    assert "error" not in (tmp_path / "log.0").read_text()


def test_an_autoencoder_is_for_latents_of_its_channels(colours: Path, tmp_path: Path) -> None:
    vae = save_autoencoder(tmp_path / "vae")
    recipe = write_recipe(tmp_path, colours, {**DIT, "channels": 4, "size": 8})
    line = refused(recipe, f"--model.vae={vae}")
    assert line == "model.vae: is for latents, and the data hold pictures; leave it out"
    line = refused(recipe, f"--model.vae={vae}", "--model.net.channels=3")
    assert line.startswith("model.vae: its latents have 4 channels, the network takes 3; ")
    assert refused(recipe, "--model.vae=/nowhere") == "/nowhere: no such folder"


def test_an_autoencoder_is_the_one_that_made_the_latents(colours: Path, tmp_path: Path) -> None:
    mine, other = (save_autoencoder(tmp_path / name, seed=ord(name)) for name in "mo")
    source, out = open_source(str(colours), key="data.train"), tmp_path / "latents"
    encode_shards(source, mine, out, options=LatentOptions(size=16, batch=8), progress=False)
    check_autoencoder(str(mine), str(out))
    with pytest.raises(UserError, match=r"^model\.vae: is not the autoencoder that made "):
        check_autoencoder(str(other), str(out))


# Fine-tunes ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plain(colours: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of an unconditional DiMSUM of 8 pixels, long enough to open its head."""
    folder = tmp_path_factory.mktemp("plain")
    recipe = write_recipe(folder, colours, {**DIMSUM, "classes": 0}, total_samples=32)
    assert train(recipe, folder / "run", "--model.optimizer.lr=0.01") == [0]
    return folder / "run"


def asked(size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 3, size, size, generator=generator)
    return x, torch.tensor([0.1, 0.5, 0.9]), torch.tensor([0, 1, 2])


@torch.no_grad()
def test_a_class_conditional_fine_tune_starts_as_the_unconditional_model(plain: Path) -> None:
    source, tuned = load_network(plain).net, DiMSUM(**DIMSUM)
    report = initialise(tuned, plain)
    assert report.missing == report.unexpected == ()
    x, t, y = asked(8)
    expected = source(x, t)
    assert expected.abs().max() > 1e-3
    for labels in (y, None):
        assert torch.equal(tuned(x, t, labels), expected)


@torch.no_grad()
def test_a_fine_tune_at_twice_the_size_sees_an_enlarged_picture_as_before(plain: Path) -> None:
    def enlarged(x: torch.Tensor) -> torch.Tensor:
        return x.repeat_interleave(2, -1).repeat_interleave(2, -2)

    source = load_network(plain).net
    tuned = DiMSUM(**{**DIMSUM, "classes": 0, "size": 16, "patch": 4})
    assert initialise(tuned, plain).missing == ()
    x, t, _ = asked(8)
    torch.testing.assert_close(tuned(enlarged(x), t), enlarged(source(x, t)), rtol=0, atol=1e-5)


@torch.no_grad()
def test_a_fine_tune_with_more_tokens_has_bicubic_positions_and_all_else_as_it_was(
    plain: Path,
) -> None:
    tuned = DiMSUM(**{**DIMSUM, "classes": 0, "size": 16})
    assert initialise(tuned, plain).missing == ()
    before, after = load_network(plain).net.state_dict(), tuned.state_dict()
    assert [n for n in before if not torch.equal(before[n], after[n])] == ["pos_embed"]
    table = before["pos_embed"].view(1, 4, 4, -1).permute(0, 3, 1, 2)
    resized = torch.nn.functional.interpolate(table, (8, 8), mode="bicubic")
    torch.testing.assert_close(after["pos_embed"], resized.flatten(2).transpose(1, 2))


@pytest.mark.parametrize(
    ("name", "side", "changes"),
    [("dimsum_classes", 8, {}), ("dimsum_64px", 16, {"size": 16, "patch": 4})],
)
def test_a_fine_tune_s_recipe_goes_through(
    plain: Path, tmp_path: Path, name: str, side: int, changes: dict[str, Any]
) -> None:
    shards = write_colours(tmp_path / "shards", 16, side=side)
    tree = yaml.safe_load((CONFIGS / f"finetune/{name}.yaml").read_text())
    tree["model"]["net"]["init_args"] = {**DIMSUM, **changes}
    tree["data"] |= {"train": str(shards), "crop": side, "global_batch": 8, "workers": 0}
    tree |= {"total_samples": 16, "wandb": {"mode": "off"}, "init_from": str(plain)}
    tree["samples"]["count"] = 0
    tree["trainer"] = {"accelerator": "cpu"}
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(tree))
    assert train(recipe, tmp_path / "run", output=tmp_path / "log") == [0], (
        tmp_path / "log.0"
    ).read_text()
    assert last(tmp_path / "run").name == "step-000000000016"
    assert "0 missing, 0 unexpected" in (tmp_path / "log.0").read_text()


# Refusals -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--data.crop=null", "--model.net.size=16"],
         "model.net: the data are pictures of 3x8x8, the network takes 3x16x16; set data.crop, "
         "data.val_crop, model.net.size or model.net.channels"),
        (["--model.net.classes=1"], "model.net.classes: label 1 of the data is not in 0 … 0"),
        (["--model.net.classes=0", "--model.guidance.scale=2"],
         "model.guidance: is for networks with classes; leave it out, or set model.net.classes"),
        (["--model.net.classes=0", "--model.label_dropout=0.2"],
         "model.label_dropout: is for networks with classes; leave it out, or set "
         "model.net.classes"),
        (["--model.label_dropout=1"], "model.label_dropout: 1.0 leaves no label; below 1"),
        (["--model.interpolant=cosine"],
         "model.interpolant: 'cosine' is not one of linear, gvp, vp"),
        (["--model.score.count=-1"], "model.score.count: -1 is below 0"),
        (["--model.score.count=1", "--model.score.features=vgg"],
         "model.score.features vgg: no such features; there are pixels, squeezenet, inception"),
        (["--model.optimizer.name=sgd", "--model.optimizer.fused=true"],
         "model.optimizer.fused: is for adam and adamw; leave it out"),
        (["--model.net=UNet"], "model.net: there is no UNet; known: DiMSUM, DiT"),
        (["--model.sampler.solver=heunn"], "model.sampler.solver: "),
        (["--model.sampler.rtol=0.1"], "model.sampler.rtol: euler has no use for it"),
        (["--model.guidance.interval=[0.5,0.2]"],
         "model.guidance.interval: expects 0 <= low < high <= 1, got 0.5, 0.2"),
        (["--model.times.mean=0.3"], "model.times.mean: only logit_normal has it"),
        (["--model.sampler.grid.shift=2"], "model.sampler.grid.shift: only shifted has it"),
        (["--scan_backend=cuda9"], 'scan_backend: no backend "cuda9"; there are auto'),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)  # fmt: skip
def test_a_mistake_is_one_line_with_the_key(
    colours: Path, tmp_path: Path, options: list[str], line: str
) -> None:
    assert refused(write_recipe(tmp_path, colours), *options).startswith(line)


def test_data_without_labels_are_refused_by_a_network_with_classes(tmp_path: Path) -> None:
    shards = write_colours(tmp_path / "shards", labels=False)
    line = refused(write_recipe(tmp_path, shards))
    assert line.startswith("model.net.classes: 2 classes, and the data have no labels; use 0, ")


def test_a_denoiser_takes_no_backbone(colours: Path, tmp_path: Path) -> None:
    line = refused(write_recipe(tmp_path, colours), "--task=denoiser")
    assert "model.net: there is no DiT; known: FFDNet, MIRNet, UNet" in line


def test_a_generation_predicts_nothing(colours: Path, plain: Path, tmp_path: Path) -> None:
    from support_fork import run_ranks

    from lit_restore.cli.train import main

    argv = ["predict", "-c", str(plain.parent / "recipe.yaml"), "--run_dir", str(plain)]
    argv += ["--data.predict", str(colours)]
    assert run_ranks(lambda rank: main(argv), 1, output=tmp_path / "log") == [2]
    assert "error: task: makes pictures of nothing" in (tmp_path / "log.0").read_text()
