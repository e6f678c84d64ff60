"""FSDP2: what is spread over ranks is saved in parts, and any checkpoint goes on anywhere."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import pytest
import torch
from support_dist import SHORT, run_of
from support_fork import run_ranks
from support_runs import (
    assert_same_run,
    largest_difference,
    last,
    rows,
    tensors_of,
    train,
    write_recipe,
)

from lit_restore.io import folder
from lit_restore.weights import load_exported
from lit_restore.weights.checkpoint import open_checkpoint
from lit_restore.weights.loading import load_network

MODES: dict[str, tuple[int, str]] = {"one": (1, "auto"), "ddp": (2, "ddp"), "fsdp2": (2, "fsdp2")}


def go(
    folder_: Path,
    shards: Path,
    mode: str,
    *options: str,
    failpoint: str = "",
) -> Path:
    world, strategy = MODES[mode]
    return run_of(
        folder_, shards, "64", *options, world=world, strategy=strategy, failpoint=failpoint
    )


@pytest.fixture(scope="module")
def whole(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder_ = tmp_path_factory.mktemp("whole")
    return {mode: go(folder_ / mode, shards, mode) for mode in MODES}


@pytest.mark.parametrize(
    ("first", "then"),
    [
        ("one", "fsdp2"),
        ("fsdp2", "one"),
        ("ddp", "fsdp2"),
        ("fsdp2", "ddp"),
        ("fsdp2", "fsdp2"),
        *(
            pytest.param(first, then, marks=pytest.mark.slow)
            for first, then in (("one", "one"), ("one", "ddp"), ("ddp", "one"), ("ddp", "ddp"))
        ),
    ],
)
def test_a_run_goes_on_under_any_other_world_and_strategy(
    shards: Path,
    whole: dict[str, Path],
    tmp_path: Path,
    first: str,
    then: str,
) -> None:
    run = go(tmp_path / "x", shards, first, failpoint="train.step=kill@14")
    assert last(run).name == "step-000000000080"
    assert (last(run) / "index.json").exists() == (first == "fsdp2")
    go(tmp_path / "x", shards, then)
    assert rows(run / "trace.jsonl") == rows(whole["one"] / "trace.jsonl")
    assert largest_difference(run, whole["one"]) < 1e-11
    if first == then:
        assert_same_run(run, whole[first])


def test_each_rank_writes_its_part_and_everything_reads_the_whole(
    whole: dict[str, Path], tmp_path: Path
) -> None:
    from lit_restore.cli.main import main

    checkpoint = last(whole["fsdp2"])
    names = {entry.name for entry in folder.verify(checkpoint).files}
    assert {
        f"{g}-r{r}.safetensors" for g in ("network", "ema", "optimizer") for r in (0, 1)
    } < names
    sizes = [(checkpoint / f"network-r{r}.safetensors").stat().st_size for r in (0, 1)]
    assert abs(sizes[0] - sizes[1]) < 0.1 * sizes[0]

    exported = tmp_path / "e.safetensors"
    assert main(["export", str(whole["fsdp2"]), "--out", str(exported), "--profile", "wide"]) == 0
    expected = load_network(whole["one"], profile="wide").net.state_dict()
    for name, tensor in load_exported(exported).state_dict().items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-6, atol=1e-7)


def test_a_rank_reads_no_more_than_the_boxes_it_asks_for(whole: dict[str, Path]) -> None:
    stored = open_checkpoint(last(whole["fsdp2"])).network
    for name in stored:
        shape = stored.shape(name)
        complete = stored.read(name)
        assert tuple(complete.shape) == shape
        if len(shape) > 1 and shape[0] > 2:
            box = ((1,) + (0,) * (len(shape) - 1), (shape[0] - 2, *shape[1:]))
            assert torch.equal(stored.read(name, box), complete[1:-1])


@pytest.mark.parametrize(
    ("failpoint", "asynchronous"),
    [
        ("ckpt.write=kill@2 rank=1", "false"),
        ("ckpt.fsync=kill@5 rank=0", "true"),
        ("ckpt.rename=kill@1", "false"),
        ("ckpt.parent=kill@1", "true"),
        *(
            pytest.param(failpoint, asynchronous, marks=pytest.mark.slow)
            for failpoint, asynchronous in (
                ("ckpt.write=kill@2 rank=1", "true"),
                ("ckpt.fsync=kill@5 rank=0", "false"),
                ("ckpt.rename=kill@1", "true"),
                ("ckpt.parent=kill@1", "false"),
            )
        ),
    ],
)
def test_killed_inside_a_save_of_two_ranks_and_resumed_it_ends_bit_equal(
    shards: Path,
    whole: dict[str, Path],
    tmp_path: Path,
    failpoint: str,
    asynchronous: str,
) -> None:
    option = f"--checkpoint.asynchronous={asynchronous}"
    run = go(tmp_path / "x", shards, "fsdp2", option, failpoint=failpoint)
    go(tmp_path / "x", shards, "fsdp2", option)
    assert_same_run(run, whole["fsdp2"])
    assert not list((run / "checkpoints").glob("t*"))  # neither tmp- nor trash-


def test_a_full_disk_on_one_rank_fails_the_save_on_both_and_training_goes_on(
    shards: Path,
    tmp_path: Path,
) -> None:
    recipe = write_recipe(
        tmp_path,
        shards,
        **SHORT,
    )
    run = tmp_path / "run"
    codes = train(
        recipe, run, "--checkpoint.every=40", world=2, strategy="fsdp2",
        failpoint="ckpt.write=enospc@2 rank=1", output=tmp_path / "log",
    )  # fmt: skip
    assert codes == [0, 0]
    assert "training goes on" in (tmp_path / "log.0").read_text()
    kept = sorted(path.name for path in (run / "checkpoints").iterdir())
    assert kept[-1] == "step-000000000160"
    assert "step-000000000040" not in kept
    assert not [name for name in kept if not name.startswith("step-")]


def test_validation_and_a_fine_tune_work_on_shards(
    shards: Path,
    whole: dict[str, Path],
    tmp_path: Path,
) -> None:
    from lit_restore.cli.train import main

    recipe = whole["fsdp2"].parent / "recipe.yaml"
    printed = []
    for mode, (world, strategy) in MODES.items():
        argv = ["validate", "-c", str(recipe), "--run_dir", str(whole["fsdp2"])]
        argv += [f"--trainer.strategy={strategy}", f"--trainer.devices={world}"]
        argv += ["--trainer.precision=64"]
        log = tmp_path / mode
        assert run_ranks(lambda rank, argv=argv: main(argv), world, output=log) == [0] * world
        lines = (tmp_path / f"{mode}.0").read_text().splitlines()
        printed.append([line for line in lines if line.startswith("psnr")])
    assert printed[0] == printed[1] == printed[2] != []

    options = (f"--init_from={whole['ddp']}", "--model.optimizer.lr=0", "--total_samples=8")
    codes = train(recipe, tmp_path / "tuned", *options, world=2, strategy="fsdp2")
    assert codes == [0, 0]
    tuned, source = tensors_of(tmp_path / "tuned"), tensors_of(whole["ddp"])
    for name, tensor in tuned.items():
        if name.startswith("net/"):
            expected = source[name.replace("net/", "ema/", 1)].to(tensor.dtype)
            torch.testing.assert_close(tensor, expected, rtol=1e-6, atol=1e-7)


def test_the_state_says_nothing_of_ranks(whole: dict[str, Path]) -> None:
    states = [json.loads((last(run) / "state.json").read_text()) for run in whole.values()]
    for state in states[1:]:
        assert state["fingerprint"] == states[0]["fingerprint"]
        assert state["network"] == states[0]["network"]


def test_two_ranks_then_one_then_two_see_the_same_samples_each_step(
    shards: Path, whole: dict[str, Path], tmp_path: Path
) -> None:
    every = "--checkpoint.every=40"
    run = go(tmp_path / "x", shards, "fsdp2", every, failpoint="train.step=kill@7")
    go(tmp_path / "x", shards, "one", every, failpoint="train.step=kill@7")
    assert last(run).name == "step-000000000080"
    go(tmp_path / "x", shards, "fsdp2", every)
    assert rows(run / "trace.jsonl") == rows(whole["one"] / "trace.jsonl")
    assert largest_difference(run, whole["one"]) < 1e-11


def kill_at_random(folder_: Path, shards: Path, draw: random.Random, mode: str) -> Path:
    """Runs that die at drawn moments, until one comes to its end."""
    points = ["train.step", "ckpt.write", "ckpt.fsync", "ckpt.complete", "ckpt.rename"]
    options = ("--checkpoint.every=40", f"--checkpoint.asynchronous={draw.random() < 0.5}")
    for _ in range(40):
        failpoint = f"{draw.choice(points)}=kill@{draw.randrange(1, 12)}"
        print(mode, options[1], failpoint)
        workers = f"--data.workers={draw.choice((0, 2))}"
        folder_.mkdir(exist_ok=True)
        recipe, run = write_recipe(folder_, shards, **SHORT), folder_ / "run"
        world, strategy = MODES[mode]
        codes = train(
            recipe, run, "--trainer.precision=64", workers, *options,
            world=world, strategy=strategy, failpoint=failpoint,
        )  # fmt: skip
        assert set(codes) <= {0, -9, 77}, codes
        if codes == [0] * world:
            break
    return run


@pytest.mark.parametrize("mode", ["ddp", "fsdp2"])
def test_two_ranks_killed_at_random_end_bit_equal(
    shards: Path, whole: dict[str, Path], tmp_path: Path, mode: str
) -> None:
    seed = int.from_bytes(os.urandom(4), "little")
    print(f"seed {seed}")
    assert_same_run(kill_at_random(tmp_path / "x", shards, random.Random(seed), mode), whole[mode])


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["ddp", "fsdp2"])
def test_two_ranks_killed_at_random_fifteen_times(
    shards: Path, whole: dict[str, Path], tmp_path: Path, mode: str
) -> None:
    seed = int.from_bytes(os.urandom(4), "little")
    print(f"seed {seed}")
    draw = random.Random(seed)
    for number in range(15):
        assert_same_run(kill_at_random(tmp_path / str(number), shards, draw, mode), whole[mode])


@pytest.mark.parametrize("options", [(), pytest.param(("--compile=true",), marks=pytest.mark.slow)])
def test_bf16_and_compilation_work_on_shards(
    shards: Path, tmp_path: Path, options: tuple[str, ...]
) -> None:
    losses = []
    for strategy in ("ddp", "fsdp2"):
        run = run_of(
            tmp_path / strategy, shards, "bf16-mixed", *options, world=2, strategy=strategy
        )
        train_rows = [row for row in rows(run / "metrics.jsonl") if row["kind"] == "train"]
        losses.append([row["loss"] for row in train_rows])
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)
