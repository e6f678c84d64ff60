"""Ranks and accumulation change no sample, no noise, and the result only by rounding."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support_dist import SHORT, run_of
from support_runs import assert_same_run, largest_difference, last, rows, train, write_recipe


def losses(run: Path) -> list[float]:
    return [row["loss"] for row in rows(run / "metrics.jsonl") if row["kind"] == "train"]


@pytest.fixture(scope="module")
def references(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("one")
    return {p: run_of(folder / p, shards, p) for p in ("32", "64")}


@pytest.mark.parametrize(("precision", "bound"), [("32", 1e-6), ("64", 1e-11)])
@pytest.mark.parametrize(
    ("world", "strategy", "options"),
    [
        (2, "ddp", ()),
        (1, "auto", ("--data.micro_batch=4",)),
        (2, "ddp", ("--data.micro_batch=2",)),
        (2, "fsdp2", ()),
        (2, "fsdp2", ("--data.micro_batch=2", "--activation_checkpointing=true")),
    ],
)
def test_ranks_and_accumulation_equal_one_process(
    shards: Path,
    references: dict[str, Path],
    tmp_path: Path,
    precision: str,
    bound: float,
    world: int,
    strategy: str,
    options: tuple[str, ...],
) -> None:
    run = run_of(tmp_path / "x", shards, precision, *options, world=world, strategy=strategy)
    reference = references[precision]
    assert rows(run / "trace.jsonl") == rows(reference / "trace.jsonl")
    assert largest_difference(run, reference) < bound
    assert losses(run) == pytest.approx(losses(reference), rel=1e-5)


def test_a_two_rank_run_resumes_bit_equal(shards: Path, tmp_path: Path) -> None:
    whole = run_of(tmp_path / "whole", shards, "32", world=2)
    # Rank 1 dies; rank 0 finds the connection gone.
    run = run_of(tmp_path / "cut", shards, "32", world=2, failpoint="train.step=kill@14 rank=1")
    assert last(run).name == "step-000000000080"
    run_of(tmp_path / "cut", shards, "32", world=2)
    assert_same_run(whole, run)


def test_two_ranks_then_one_with_another_accumulation_see_the_same_samples(
    shards: Path, references: dict[str, Path], tmp_path: Path
) -> None:
    folder = tmp_path / "x"
    run = run_of(folder, shards, "64", world=2, failpoint="train.step=kill@12")
    run_of(folder, shards, "64", "--data.micro_batch=4")
    assert rows(run / "trace.jsonl") == rows(references["64"] / "trace.jsonl")
    assert largest_difference(run, references["64"]) < 1e-11


def test_a_signal_to_one_rank_stops_and_saves_both(shards: Path, tmp_path: Path) -> None:
    recipe, run = write_recipe(tmp_path, shards, **SHORT), tmp_path / "run"
    failpoint = "train.step=term@5 rank=1"
    assert train(recipe, run, world=2, failpoint=failpoint, output=tmp_path / "log") == [75, 75]
    assert json.loads((run / "STATUS.json").read_text())["samples_seen"] == 40
    assert last(run).name == "step-000000000040"


def test_nan_on_one_rank_is_skipped_by_both(shards: Path, tmp_path: Path) -> None:
    recipe, run = write_recipe(tmp_path, shards, **SHORT), tmp_path / "run"
    failpoint = "train.loss_nan=nan@3 rank=1"
    assert train(recipe, run, world=2, failpoint=failpoint) == [0, 0]
    skipped = [
        row["samples_seen"] for row in rows(run / "metrics.jsonl") if row.get("skipped_steps")
    ]
    assert skipped == [24]


def test_validate_prints_the_same_means_on_two_ranks(shards: Path, tmp_path: Path) -> None:
    from support_fork import run_ranks

    from lit_restore.cli.train import main

    run = run_of(tmp_path / "x", shards, "32")
    printed = []
    for world in (1, 2):
        options = ("--trainer.strategy=ddp", f"--trainer.devices={world}") if world > 1 else ()
        argv = ["validate", "-c", str(tmp_path / "x/recipe.yaml"), "--run_dir", str(run), *options]
        log = tmp_path / f"log{world}"
        assert run_ranks(lambda rank, argv=argv: main(argv), world, output=log) == [0] * world
        lines = log.with_name(f"log{world}.0").read_text().splitlines()
        printed.append([line for line in lines if line.startswith("psnr")])
    assert printed[0] == printed[1] != []


def test_validation_does_not_depend_on_the_number_of_ranks(shards: Path, tmp_path: Path) -> None:
    scores = []
    for world in (1, 2):
        folder = tmp_path / str(world)
        folder.mkdir()
        recipe = write_recipe(
            folder, shards, **{**SHORT, "total_samples": 8, "model": {"optimizer": {"lr": 0.0}}}
        )
        assert set(train(recipe, folder / "run", world=world)) == {0}
        scores.append([r for r in rows(folder / "run/metrics.jsonl") if r["kind"] == "val"])
    assert scores[0] == scores[1]
    assert len(scores[0]) == 1
