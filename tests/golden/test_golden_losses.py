"""Ten steps of each recipe give the losses they always gave.

The numbers hold for one set of versions and threads; elsewhere the test is skipped and says why.
After a change that is meant to change them:

    python tests/golden/test_golden_losses.py
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import pytest
from support_runs import rows, run_ranks

from lit_restore.callbacks.fingerprints import versions

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
RECIPES: dict[str, list[str]] = {
    "quickstart": ["--total_samples=80"],
    "denoiser/small": ["--total_samples=80"],
    "denoiser/mirnet_s": ["--total_samples=20", "--data.global_batch=2", "--data.crop=16"],
    "dimsum/faces_64": [
        "--total_samples=40",
        "--data.global_batch=4",
        "--data.crop=16",
        "--model.net.size=16",
        "--model.net.patch=2",
        "--model.net.width=64",
        "--model.net.depth=4",
        "--compile=false",
        "--model.net.attention_heads=4",
        "--model.net.fusion_heads=2",
        "--trainer.precision=32",
        "--model.schedule.warmup=0",
    ],
}


def losses(recipe: str, folder: Path) -> list[float]:
    from lit_restore.cli.train import main

    argv = [
        "fit", "-c", str(ROOT / f"configs/{recipe}.yaml"),
        "-c", str(ROOT / "configs/trainer/debug.yaml"), *RECIPES[recipe],
        f"--run_dir={folder / 'run'}", f"--data.train={ROOT / 'data/fixture'}",
        "--trainer.detect_anomaly=false", "--validation.every=0", "--samples.count=0",
        "--data.val=null", "--metrics.every=1",
    ]  # fmt: skip
    assert run_ranks(lambda rank: main(argv), 1, output=folder / "log") == [0], (
        folder / "log.0"
    ).read_text()
    found = rows(folder / "run" / "metrics.jsonl")
    return [row["loss"] for row in found if row["kind"] == "train"]


def fingerprint() -> dict[str, Any]:
    import platform

    import torch

    return {**versions(), "cpu": torch.backends.cpu.get_cpu_capability(), "os": platform.machine()}


def test_each_recipe_has_its_golden_file() -> None:
    listed = {p.name for p in HERE.glob("*.json")}
    assert listed == {f"{recipe.replace('/', '-')}.json" for recipe in RECIPES}


@pytest.mark.parametrize("recipe", list(RECIPES))
def test_ten_steps_give_the_golden_losses(recipe: str, tmp_path: Path) -> None:
    golden = json.loads((HERE / f"{recipe.replace('/', '-')}.json").read_text())
    here = fingerprint()
    if golden["fingerprint"] != here:
        differing = [k for k in here if golden["fingerprint"].get(k) != here[k]]
        pytest.skip(f"made with other {', '.join(differing)}")
    assert losses(recipe, tmp_path) == pytest.approx(golden["losses"], rel=1e-6)


def make() -> None:
    """Write the golden files anew."""
    import torch

    torch.set_num_threads(1)
    for recipe in RECIPES:
        with tempfile.TemporaryDirectory() as folder:
            found = losses(recipe, Path(folder))
        content = {"fingerprint": fingerprint(), "losses": found}
        path = HERE / f"{recipe.replace('/', '-')}.json"
        path.write_text(json.dumps(content, indent=1) + "\n")
        print(path, found)


if __name__ == "__main__":
    make()
