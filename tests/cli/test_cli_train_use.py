"""What a finished run is used for: validate, test, predict, export, fine-tune."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import encoded, picture, write_tar
from PIL import Image
from support_fork import run_ranks
from support_runs import last, rows, train, write_recipe

from lit_restore.networks.base import apply_padded
from lit_restore.weights import load_exported
from lit_restore.weights.checkpoint import read_checkpoint


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("finished")
    data = folder / "data"
    data.mkdir()
    write_tar(data / "t.tar", [(f"{k}.png", encoded(picture(k))) for k in range(5)])
    recipe = write_recipe(folder, data)
    assert train(recipe, folder / "run") == [0]
    return recipe, folder / "run"


def use(command: str, recipe: Path, run: Path, *options: str, output: Path) -> str:
    from lit_restore.cli.train import main

    argv = [command, "-c", str(recipe), "--run_dir", str(run), *options]
    assert run_ranks(lambda rank: main(argv), 1, output=output) == [0], output.with_name(
        f"{output.name}.0"
    ).read_text()
    return output.with_name(f"{output.name}.0").read_text()


@pytest.mark.parametrize("command", ["validate", "test"])
def test_validation_of_a_finished_run_gives_the_recorded_scores(
    command: str, finished: tuple[Path, Path], tmp_path: Path
) -> None:
    recipe, run = finished
    text = use(command, recipe, run, output=tmp_path / "log")
    recorded = [row for row in rows(run / "metrics.jsonl") if row["kind"] == "val"][-1]
    printed = dict(line.split() for line in text.splitlines() if line.startswith("psnr_rgb"))
    assert printed == {k: f"{v:.4f}" for k, v in recorded.items() if k.startswith("psnr")}


def test_validation_without_anything_trained_is_one_line(
    finished: tuple[Path, Path], tmp_path: Path
) -> None:
    from lit_restore.cli.train import main

    argv = ["validate", "-c", str(finished[0]), "--run_dir", str(tmp_path / "none")]
    assert run_ranks(lambda rank: main(argv), 1, output=tmp_path / "log") == [2]
    assert "holds no checkpoint" in (tmp_path / "log.0").read_text()


def test_predict_writes_what_the_averaged_network_makes_of_each_image(
    finished: tuple[Path, Path], tmp_path: Path
) -> None:
    recipe, run = finished
    options = (f"--data.predict={recipe.parent / 'data'}", f"--resume={last(run)}")
    use("predict", recipe, tmp_path / "p", *options, output=tmp_path / "log")
    pictures = sorted((tmp_path / "p" / "predictions" / "t").glob("*.denoised.png"))
    assert [p.name for p in pictures] == [f"{k}.denoised.png" for k in range(5)]
    exported = tmp_path / "e.safetensors"
    from lit_restore.cli.main import main

    assert main(["export", str(last(run)), "--out", str(exported)]) == 0
    net = load_exported(exported)
    x = torch.from_numpy(picture(3).copy()).permute(2, 0, 1)[None].float() / 255
    with torch.no_grad():
        expected = apply_padded(net, x, torch.tensor([25 / 255]))[0].clamp(0, 1)
    ours = np.asarray(Image.open(pictures[3])).astype(int)
    assert np.abs(ours - (expected.permute(1, 2, 0).numpy() * 255)).max() <= 0.51


def test_an_exported_file_holds_the_average_and_starts_a_fine_tune(
    finished: tuple[Path, Path], tmp_path: Path
) -> None:
    from lit_restore.cli.main import main

    recipe, run = finished
    exported = tmp_path / "e.safetensors"
    assert main(["export", str(run), "--out", str(exported), "--profile", "wide"]) == 0
    stored = read_checkpoint(last(run)).averages["wide"]
    for name, tensor in load_exported(exported).state_dict().items():
        assert torch.equal(tensor, stored[name])
    options = (f"--init_from={exported}", "--model.optimizer.lr=0", "--total_samples=8")
    assert train(recipe, tmp_path / "tuned", *options) == [0]
    tuned = read_checkpoint(last(tmp_path / "tuned"))
    for name, tensor in tuned.network.items():
        assert torch.equal(tensor, stored[name])
        assert torch.equal(tuned.averages["ema"][name], stored[name])
