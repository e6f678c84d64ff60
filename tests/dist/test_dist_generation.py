"""Two ranks of a generation train, draw and score as one process does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support_fork import run_ranks
from support_generation import DIMSUM, write_colours, write_recipe
from support_runs import rows, tensors_of, train

OVER = {
    "total_samples": 24,
    "checkpoint": {"every": 0},
    "samples": {"every": 16, "count": 3},
    "validation": {"every": 0},
    # Adam divides by the root of a tiny second moment early on, which blows rounding up.
    "model": {
        "optimizer": {"eps": 1e-4}, "guidance": {"scale": 1.5}, "label_dropout": 0.5,
        "score": {"count": 7}, "sampler": {"solver": "euler", "nfe": 2},
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_colours(tmp_path_factory.mktemp("colours"), 10)


def run_of(folder: Path, colours: Path, *options: str, world: int = 1, strategy: str = "") -> Path:
    data = {"val": str(colours), "val_batch": 2}
    recipe = write_recipe(folder, colours, DIMSUM, **{**OVER, "data": data})
    log = folder / "log"
    codes = train(recipe, folder / "run", *options, world=world, strategy=strategy, output=log)
    assert set(codes) == {0}, (folder / "log.0").read_text()
    return folder / "run"


@pytest.fixture(scope="module")
def ones(colours: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("one")
    return {p: run_of(folder / p, colours, f"--trainer.precision={p}") for p in ("32", "64")}


@pytest.mark.parametrize(
    ("strategy", "precision", "bound"), [("ddp", "32", 1e-6), ("fsdp2", "64", 1e-14)]
)
def test_two_ranks_train_draw_and_score_as_one(
    colours: Path, ones: dict[str, Path], tmp_path: Path, strategy: str, precision: str,
    bound: float,
) -> None:  # fmt: skip
    one, options = ones[precision], ("--data.micro_batch=2", f"--trainer.precision={precision}")
    run = run_of(tmp_path, colours, *options, world=2, strategy=strategy)
    assert rows(run / "trace.jsonl") == rows(one / "trace.jsonl")
    assert distance(run, one) < bound
    assert_alike(rows(run / "metrics.jsonl")[-1], rows(one / "metrics.jsonl")[-1])
    pictures, others = (sorted((folder / "samples").iterdir()) for folder in (run, one))
    assert [path.name for path in pictures] == [path.name for path in others]
    assert len(pictures) == 2
    for path, other in zip(pictures, others, strict=True):
        levels = [np.asarray(Image.open(p)).astype(int) for p in (path, other)]
        assert np.abs(levels[0] - levels[1]).max() <= 1


def distance(run: Path, other: Path) -> float:
    """Of all weights, averages and moments together, over their norm.

    Tensor by tensor it would be of what is next to nothing behind gates that are still closed.
    """
    a, b = tensors_of(run), tensors_of(other)
    assert a.keys() == b.keys()
    apart = sum(float((a[name].double() - b[name].double()).square().sum()) for name in a)
    return (apart / sum(float(tensor.double().square().sum()) for tensor in b.values())) ** 0.5


def assert_alike(scores: dict[str, float], others: dict[str, float]) -> None:
    assert scores["kind"] == others.pop("kind") == "val"
    assert (others["n_real"], others["n_fake"]) == (10, 7)
    for name, value in others.items():
        assert scores[name] == pytest.approx(value, rel=1e-4, abs=1e-5), name


@pytest.mark.slow
def test_steps_of_each_picture_s_own_are_refused_where_ranks_score_a_sharded_network(
    colours: Path, tmp_path: Path
) -> None:
    recipe = write_recipe(
        tmp_path, colours, DIMSUM, data={"val": str(colours)},
        model={"sampler": {"solver": "dopri5", "nfe": None}, "score": {"count": 4}},
    )  # fmt: skip
    codes = train(recipe, tmp_path / "r", world=2, strategy="fsdp2", output=tmp_path / "log")
    assert codes == [2, 2]
    lines = (tmp_path / "log.0").read_text()
    assert "error: model.sampler.solver: takes as many steps" in lines
    assert "Traceback" not in lines


def test_validate_scores_a_named_checkpoint(ones: dict[str, Path], tmp_path: Path) -> None:
    from lit_restore.cli.train import main

    one = ones["32"]
    checkpoint = next((one / "checkpoints").iterdir())
    recipe = one.parent / "recipe.yaml"
    argv = ["validate", "-c", str(recipe), "--run_dir", str(tmp_path), "--resume", str(checkpoint)]
    assert run_ranks(lambda rank: main(argv), 1, output=tmp_path / "log") == [0]
    printed = dict(line.split() for line in (tmp_path / "log.0").read_text().splitlines())
    expected = rows(one / "metrics.jsonl")[-1]
    names = [name for name in expected if name not in ("kind", "samples_seen")]
    assert list(printed) == names
    assert names[:2] == ["minus_loss", "fd_pixels"]
    for name in names:
        assert float(printed[name]) == pytest.approx(expected[name], abs=6e-5), name
