"""A run that is killed anywhere and resumed is, bit for bit, the run that was not."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support_runs import assert_same_run, last, rows, train, write_recipe

Make = Callable[..., Path]


@pytest.fixture(scope="module")
def uninterrupted(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted")
    assert train(write_recipe(folder, shards), folder / "run") == [0]
    return folder / "run"


def test_two_equal_runs_are_bit_equal(shards: Path, uninterrupted: Path, tmp_path: Path) -> None:
    assert train(write_recipe(tmp_path, shards), tmp_path / "run") == [0]
    assert_same_run(uninterrupted, tmp_path / "run")
    keys = [key for row in rows(uninterrupted / "trace.jsonl") for key in row["keys"]]
    assert len(keys) == 96
    assert len(set(keys[:21])) == 21  # one epoch: every sample once


def test_another_seed_is_another_run(shards: Path, uninterrupted: Path, tmp_path: Path) -> None:
    assert train(write_recipe(tmp_path, shards), tmp_path / "run", "--seed", "1") == [0]
    with pytest.raises(AssertionError):
        assert_same_run(uninterrupted, tmp_path / "run")


@pytest.mark.parametrize(
    ("first", "second", "workers"),
    [
        ("train.step=kill@5", "ckpt.rename=kill@1", (0, 2, 0)),
        ("ckpt.write=kill@2", "train.step=kill@1", (2, 0, 2)),
        ("ckpt.parent=kill@1", "val.batch=kill@2", (0, 0, 0)),
        ("train.step=kill@7", "ckpt.unlink=kill@1", (0, 0, 2)),
    ],
)
def test_killed_and_resumed_twice_ends_bit_equal(
    shards: Path,
    uninterrupted: Path,
    tmp_path: Path,
    first: str,
    second: str,
    workers: tuple[int, int, int],
) -> None:
    recipe, run = write_recipe(tmp_path, shards), tmp_path / "run"
    for failpoint, count, code in zip((first, second, ""), workers, (-9, -9, 0), strict=True):
        option = f"--data.workers={count}"
        assert train(recipe, run, option, failpoint=failpoint) == [code], failpoint
    assert_same_run(uninterrupted, run)
    leftovers = [p.name for p in (run / "checkpoints").iterdir() if not p.name.startswith("step-")]
    assert leftovers == []


@pytest.mark.parametrize(
    ("failpoint", "code"),
    [
        ("train.step=term@5", 75),
        ("val.batch=usr1@2", 75),
        ("grid.draw=term@1", 75),
        ("ckpt.write=term@1", 75),
        ("train.step=int@4", 130),
    ],
)
def test_a_signal_loses_no_step_and_the_resumed_run_is_bit_equal(
    shards: Path, uninterrupted: Path, tmp_path: Path, failpoint: str, code: int
) -> None:
    recipe, run = write_recipe(tmp_path, shards), tmp_path / "run"
    assert train(recipe, run, failpoint=failpoint, output=tmp_path / "log") == [code]
    text = (tmp_path / "log.0").read_text()
    assert text.count("error: ") == 1, text
    assert "Traceback" not in text
    status = json.loads((run / "STATUS.json").read_text())
    assert status["code"] == code
    assert status["state"] == ("preempted" if code == 75 else "interrupted")
    trained = rows(run / "trace.jsonl")[-1]["samples_seen"]
    assert status["samples_seen"] == trained == int(last(run).name[5:])
    assert train(recipe, run) == [0]
    assert_same_run(uninterrupted, run)
    assert (run / "samples").is_dir()
    assert json.loads((run / "STATUS.json").read_text())["state"] == "done"


def test_a_real_process_killed_at_random_and_resumed_ends_bit_equal(
    shards: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    recipe, run = write_recipe(tmp_path, shards), tmp_path / "run"
    seed = int.from_bytes(os.urandom(4), "little")
    print(f"seed {seed}")
    step = random.Random(seed).randrange(2, 12)
    command = [sys.executable, "train.py", "fit", "-c", str(recipe), "--run_dir", str(run)]
    environment = {**os.environ, "LIT_RESTORE_FAILPOINTS": f"train.step=kill@{step}"}
    root = Path(__file__).parents[2]
    killed = subprocess.run(command, cwd=root, env=environment, capture_output=True, timeout=200)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert train(recipe, run) == [0]
    assert_same_run(uninterrupted, run)


def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(
    shards: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    recipe, run = write_recipe(tmp_path, shards), tmp_path / "run"
    assert train(recipe, run, failpoint="train.step=kill@7") == [-9]
    tensors = last(run) / "ema.safetensors"
    content = bytearray(tensors.read_bytes())
    content[len(content) // 2] ^= 1
    tensors.write_bytes(content)
    assert train(recipe, run, output=tmp_path / "log") == [0]
    assert "sha256 differs" in (tmp_path / "log.0").read_text()
    assert_same_run(uninterrupted, run)
    assert (run / "checkpoints" / f"left-{tensors.parent.name}" / "ema.safetensors").is_file()


def test_a_run_taken_back_by_hand_keeps_what_it_saves_from_there(
    shards: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    """Checkpoints of the branch that is left would else count as the newest, and push it out."""
    recipe, run = write_recipe(tmp_path, shards), tmp_path / "run"
    assert train(recipe, run) == [0]
    names = sorted(path.name for path in (run / "checkpoints").iterdir())
    back = run / "checkpoints" / "step-000000000072"
    failpoint = "train.step=kill@2"
    assert train(recipe, run, "--resume", str(back), failpoint=failpoint) == [-9]
    assert sorted(path.name for path in (run / "checkpoints").glob("step-*"))[-1] == back.name
    assert train(recipe, run) == [0]
    assert_same_run(uninterrupted, run)
    after = sorted(path.name for path in (run / "checkpoints").iterdir())
    assert after == ["left-step-000000000096", *names]


def test_a_made_up_validation_that_is_killed_again_is_recorded_once(
    shards: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    recipe, run = write_recipe(tmp_path, shards), tmp_path / "run"
    assert train(recipe, run, failpoint="val.batch=usr1@2") == [75]
    assert train(recipe, run, failpoint="ckpt.write=kill@1") == [-9]
    assert [row["samples_seen"] for row in rows(run / "metrics.jsonl") if row["kind"] == "val"]
    assert train(recipe, run) == [0]
    assert_same_run(uninterrupted, run)


@pytest.mark.parametrize("command", ["validate", "test"])
def test_a_signal_stops_a_validation_too(
    shards: Path, uninterrupted: Path, tmp_path: Path, command: str
) -> None:
    from support_fork import run_ranks

    from lit_restore.cli.train import main
    from lit_restore.io import failpoints

    recipe = write_recipe(tmp_path, shards)

    def one(rank: int) -> int:
        with failpoints.armed("data.decode=term@1"):
            options = ["--run_dir", str(uninterrupted), "--data.val", str(shards)]
            return main([command, "-c", str(recipe), *options])

    assert run_ranks(one, 1, output=tmp_path / "log") == [75]
    text = (tmp_path / "log.0").read_text()
    assert "error: stopped by SIGTERM" in text
    assert "psnr" not in text


def test_the_loss_scale_is_part_of_the_checkpoint_and_its_overflows_are_no_faults(
    shards: Path, tmp_path: Path
) -> None:
    """16-mixed on the CPU, where it is else refused: float16 and a loss scale as on a GPU."""
    import torch
    from lightning.pytorch.plugins import MixedPrecision
    from lightning.pytorch.trainer.connectors import accelerator_connector

    def scaled(_: object) -> MixedPrecision:
        # Overflows at first, and grows after every four good steps.
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**32, growth_interval=4)
        return MixedPrecision("16-mixed", "cpu", scaler=scaler)

    whole, cut = tmp_path / "whole", tmp_path / "cut"
    recipe = write_recipe(tmp_path, shards)
    with pytest.MonkeyPatch.context() as patch:
        connector = accelerator_connector._AcceleratorConnector
        patch.setattr(connector, "_check_and_init_precision", scaled)
        assert train(recipe, whole, output=tmp_path / "log") == [0]
        assert train(recipe, cut, failpoint="train.step=kill@8") == [-9]
        assert train(recipe, cut) == [0]
    assert_same_run(whole, cut)
    states = [json.loads((last(run) / "state.json").read_text())["scaler"] for run in (whole, cut)]
    assert states[0] == states[1]
    assert states[0]["scale"] < 2.0**32
    assert sum(row.get("skipped_steps", 0) for row in rows(whole / "metrics.jsonl")) > 0
    assert "not finite" not in (tmp_path / "log.0").read_text()
    assert not list(whole.glob("badbatch-*"))


def test_with_no_good_checkpoint_left_nothing_starts_afresh(shards: Path, tmp_path: Path) -> None:
    recipe, run = write_recipe(tmp_path, shards), tmp_path / "run"
    assert train(recipe, run, failpoint="train.step=kill@5") == [-9]
    for folder in (run / "checkpoints").glob("step-*"):
        (folder / "COMPLETE").unlink()
    assert train(recipe, run, output=tmp_path / "log") == [2]
    text = (tmp_path / "log.0").read_text()
    assert "no checkpoint is intact" in text


@pytest.mark.parametrize("option", ["resume=false", "resume=true"])
def test_resume_says_what_it_means(
    shards: Path, uninterrupted: Path, tmp_path: Path, option: str
) -> None:
    recipe = write_recipe(tmp_path, shards)
    run = uninterrupted if option == "resume=false" else tmp_path / "run"
    before = sorted(p.name for p in uninterrupted.rglob("*"))
    assert train(recipe, run, f"--{option}", output=tmp_path / "log") == [2]
    assert "checkpoint" in (tmp_path / "log.0").read_text()
    assert sorted(p.name for p in uninterrupted.rglob("*")) == before


def test_a_finished_run_has_nothing_to_do(shards: Path, tmp_path: Path) -> None:
    recipe, run = write_recipe(tmp_path, shards), tmp_path / "run"
    assert train(recipe, run) == [0]
    before = (run / "metrics.jsonl").read_bytes()
    assert train(recipe, run) == [0]
    assert (run / "metrics.jsonl").read_bytes() == before


def test_the_child_of_a_fork_starts_with_one_thread(tmp_path: Path) -> None:
    import torch
    from support_fork import run_ranks

    torch.set_num_threads(2)
    try:
        torch.randn(256, 256) @ torch.randn(256, 256)

        def child(rank: int) -> int:
            torch.randn(512, 512) @ torch.randn(512, 512)
            return 40 + torch.get_num_threads()

        assert run_ranks(child, 1, seconds=30) == [41]
    finally:
        torch.set_num_threads(1)


@pytest.mark.slow
def test_thirty_random_kills(shards: Path, uninterrupted: Path, tmp_path: Path) -> None:
    seed = int.from_bytes(os.urandom(4), "little")
    print(f"seed {seed}")
    draw = random.Random(seed)
    points = ["train.step", "ckpt.write", "ckpt.fsync", "ckpt.complete", "ckpt.rename"]
    for number in range(30):
        run = tmp_path / f"run{number}"
        recipe = write_recipe(tmp_path, shards)
        started = time.monotonic()
        for _ in range(40):
            failpoint = f"{draw.choice(points)}=kill@{draw.randrange(1, 9)}"
            workers = f"--data.workers={draw.choice((0, 2))}"
            if train(recipe, run, workers, failpoint=failpoint) == [0]:
                break
        assert_same_run(uninterrupted, run)
        print(number, f"{time.monotonic() - started:.1f} s")


def test_a_launcher_that_starts_it_again_does_not_go_back_again(
    shards: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    """`resume: PATH` in a command that SLURM or torchrun repeats would lose all progress."""
    recipe, run = write_recipe(tmp_path, shards), tmp_path / "run"
    assert train(recipe, run) == [0]
    back = ("--resume", str(run / "checkpoints" / "step-000000000072"))
    assert train(recipe, run, *back, failpoint="train.step=term@1") == [75]
    assert last(run).name == "step-000000000080"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_RESTART_COUNT", "1")
        assert train(recipe, run, *back, output=tmp_path / "log") == [0]
    assert "step-000000000080 at 80 samples" in (tmp_path / "log.0").read_text()
    assert_same_run(uninterrupted, run)


def test_a_run_stopped_before_its_first_step_is_there_to_be_started_again(
    shards: Path, tmp_path: Path
) -> None:
    recipe, run = write_recipe(tmp_path, shards), tmp_path / "run"
    assert train(recipe, run, failpoint="data.decode=term@1") == [75]
    assert json.loads((run / "STATUS.json").read_text())["state"] == "preempted"
    assert train(recipe, run) == [0]
