"""A generation that is killed or stopped, and resumed, is bit for bit the one that was not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support_generation import DIMSUM, write_colours, write_recipe
from support_runs import assert_same_run, last, train

OVER: dict[str, Any] = {
    "total_samples": 72,  # one and a half epochs
    "checkpoint": {"every": 32},
    "samples": {"every": 48, "count": 3},
    "model": {"guidance": {"scale": 2.0}, "label_dropout": 0.5, "net": {"drop_path": 0.2}},
}
GRIDS = ["grid-000000000048.png", "grid-000000000072.png"]


def start(folder: Path, *options: str, failpoint: str = "") -> list[int]:
    shards = write_colours(folder / "shards", 48)
    over = {**OVER, "model": {k: v for k, v in OVER["model"].items() if k != "net"}}
    recipe = write_recipe(folder, shards, {**DIMSUM, **OVER["model"]["net"]}, **over)
    log = folder / "log"
    return train(recipe, folder / "run", *options, failpoint=failpoint, output=log)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    assert start(folder) == [0], (folder / "log.0").read_text()
    return folder / "run"


def grids(run: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((run / "samples").iterdir())}


def test_killed_in_mid_epoch_it_ends_bit_equal(whole: Path, tmp_path: Path) -> None:
    assert start(tmp_path, failpoint="train.step=kill@7") == [-9]
    assert last(tmp_path / "run").name == "step-000000000032"
    assert start(tmp_path) == [0]
    assert_same_run(whole, tmp_path / "run")
    assert grids(tmp_path / "run") == grids(whole)
    assert list(grids(whole)) == GRIDS


def test_a_signal_inside_a_grid_leaves_it_for_the_resumed_run(whole: Path, tmp_path: Path) -> None:
    assert start(tmp_path, failpoint="grid.draw=term@2") == [75]
    assert last(tmp_path / "run").name == "step-000000000048"
    assert not (tmp_path / "run/samples").exists()
    assert start(tmp_path) == [0]
    assert_same_run(whole, tmp_path / "run")
    assert grids(tmp_path / "run") == grids(whole)
