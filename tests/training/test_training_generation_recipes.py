"""The recipes for generation: their networks can be built, and their numbers are what they say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from lit_restore.networks import NETWORKS
from lit_restore.networks.dimsum import PRESETS

CONFIGS = Path(__file__).parents[2] / "configs"
ALL = {str(p.relative_to(CONFIGS)): yaml.safe_load(p.read_text()) for p in CONFIGS.rglob("*.yaml")}
RECIPES: dict[str, dict[str, Any]] = {
    name: tree for name, tree in ALL.items() if tree.get("task") == "generation"
}
PUBLISHED = ("celebahq256", "celebahq512", "church256", "imagenet256")
EPOCHS = {"celebahq256": (225, 27_000), "celebahq512": (165, 27_000), "church256": (395, 120_000),
          "imagenet256": (510, 2 * 1_281_167)}  # fmt: skip
"""Epochs of the released weights, and the samples of one."""

every_recipe = pytest.mark.parametrize("name", sorted(RECIPES))


def net_of(name: str) -> dict[str, Any]:
    options: dict[str, Any] = RECIPES[name]["model"]["net"]["init_args"]
    return options


@every_recipe
def test_the_network_can_be_built_and_takes_what_the_data_are_cropped_to(name: str) -> None:
    net = RECIPES[name]["model"]["net"]
    with torch.device("meta"):
        built = NETWORKS[net["class_path"]](**net["init_args"])
    assert sum(p.numel() for p in built.parameters()) > 1e6
    crop = RECIPES[name]["data"]["crop"]
    assert crop == (None if net["init_args"]["channels"] == 4 else net["init_args"]["size"])


@every_recipe
def test_the_run_is_a_whole_number_of_steps_and_has_pictures(name: str) -> None:
    tree = RECIPES[name]
    assert tree["total_samples"] % tree["data"]["global_batch"] == 0
    assert tree["samples"]["every"] <= tree["total_samples"] / 2


@pytest.mark.parametrize("dataset", PUBLISHED)
def test_a_published_recipe_has_the_paper_s_numbers(dataset: str) -> None:
    """As of the authors' training scripts; epochs in whole steps, which drop the last samples."""
    tree, (epochs, samples) = RECIPES[f"dimsum/{dataset}.yaml"], EPOCHS[dataset]
    batch = tree["data"]["global_batch"]
    assert tree["total_samples"] == epochs * (samples // batch) * batch
    half_life = tree["ema"]["profiles"]["ema"]["half_life"]
    assert 0.9999 ** (half_life / batch) == pytest.approx(0.5, rel=1e-5)
    assert tree["trainer"] == {"precision": 32}
    net = net_of(f"dimsum/{dataset}.yaml")
    assert {k: net[k] for k in ("width", "depth", "patch")} == PRESETS["L/2"]
    assert net["drop_path"] == 0.1
    assert tree["model"]["interpolant"] == "gvp"
    assert set(net) == {"channels", "size", "patch", "width", "depth", "classes", "drop_path"}


@pytest.mark.parametrize(
    ("name", "preset"), [("cifar10_32", "pixels-32"), ("faces_64", "pixels-64")]
)
def test_a_small_recipe_is_its_preset_and_more(name: str, preset: str) -> None:
    net = net_of(f"dimsum/{name}.yaml")
    assert {key: net.get(key) for key in PRESETS[preset]} == PRESETS[preset]


@pytest.mark.parametrize(
    ("tuned", "changed"),
    [("dimsum_classes", {"classes"}), ("dimsum_64px", {"size", "patch"})],
)
def test_a_fine_tune_s_backbone_is_that_of_the_run_it_starts_from(
    tuned: str, changed: set[str]
) -> None:
    start = RECIPES[f"finetune/{tuned}.yaml"]["init_from"]
    source = next(name for name, tree in RECIPES.items() if tree["run_dir"] == start)
    before, after = net_of(source), net_of(f"finetune/{tuned}.yaml")
    assert {k for k in {*before, *after} if before.get(k) != after.get(k)} == changed
