"""Saves behind the training: what is saved is what was there when the save was asked for."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
import torch
from support_runs import assert_same_run, last, rows, train, write_recipe

from lit_restore.callbacks.retention import Retention
from lit_restore.callbacks.saving import Saver
from lit_restore.io import failpoints, folder
from lit_restore.weights.checkpoint import (
    STEP_FOLDER,
    Checkpoint,
    part_of,
    read_checkpoint,
    step_folder,
)


def checkpoint(value: float) -> Checkpoint:
    tensor = torch.full((1000, 100), value)
    state = {"samples_seen": 8, "score": None}
    return Checkpoint({"w": tensor}, {"ema": {"w": tensor * 2}}, {"w/step": tensor[0]}, state)


def saver(tmp_path: Path, published: list[Path] | None = None) -> Saver:
    done = [] if published is None else published
    return Saver(tmp_path, Retention(last=2, best=0, every=0), done.append)


def test_changing_the_parameters_right_after_does_not_change_what_is_saved(tmp_path: Path) -> None:
    target, content = step_folder(tmp_path, 8), checkpoint(1.0)
    published: list[Path] = []
    behind = saver(tmp_path, published)
    with failpoints.armed("ckpt.write=sleep:0.3"):  # the change below comes first
        behind.save_behind(target, part_of(content), content.state)
        for group in (content.network, content.averages["ema"], content.optimizer):
            for tensor in group.values():
                tensor.fill_(-7)
        assert not target.exists()
        outcome = behind.settle()
    assert outcome is not None
    assert outcome.error is None
    assert published == [target]
    saved = read_checkpoint(target)
    assert torch.equal(saved.network["w"], torch.full((1000, 100), 1.0))
    assert torch.equal(saved.averages["ema"]["w"], torch.full((1000, 100), 2.0))
    assert torch.equal(saved.optimizer["w/step"], torch.full((100,), 1.0))


def test_without_the_copy_the_change_would_be_saved(tmp_path: Path) -> None:
    """The negative control: `part_of` alone shares memory with the training."""
    target, content = step_folder(tmp_path, 8), checkpoint(1.0)
    part = part_of(content)
    content.network["w"].fill_(-7)
    assert saver(tmp_path).save(target, part, content.state, verify=True).error is None
    assert torch.equal(read_checkpoint(target).network["w"], torch.full((1000, 100), -7.0))


def test_what_goes_wrong_behind_is_told_when_it_is_waited_for(tmp_path: Path) -> None:
    target, content = step_folder(tmp_path, 8), checkpoint(1.0)
    behind = saver(tmp_path)
    with failpoints.armed("ckpt.fsync=enospc@2"):
        behind.save_behind(target, part_of(content), content.state)
        outcome = behind.settle()
    assert outcome is not None
    assert "No space left" in str(outcome.error)
    assert not list(tmp_path.iterdir())
    assert behind.settle() is None
    with failpoints.armed("ckpt.write=raise"):  # a bug of ours keeps its traceback
        behind.save_behind(target, part_of(content), content.state)
        with pytest.raises(RuntimeError):
            behind.settle()


def test_an_exception_while_it_is_waited_for_does_not_lose_the_save(tmp_path: Path) -> None:
    """A dead data worker's signal raises in whatever the main thread does just then."""
    target, content = step_folder(tmp_path, 8), checkpoint(1.0)
    published: list[Path] = []
    behind = saver(tmp_path, published)
    with failpoints.armed("ckpt.write=sleep:0.3"):
        behind.save_behind(target, part_of(content), content.state)
        job = behind._behind
        assert job is not None
        with pytest.MonkeyPatch.context() as patch:

            def interrupted(seconds: float | None = None) -> None:
                raise RuntimeError("DataLoader worker is killed")

            patch.setattr(job, "wait", interrupted)
            with pytest.raises(RuntimeError):
                behind.settle()
        behind.close()
    assert folder.verify(target)
    assert published == [target]


def test_nothing_counts_as_saved_before_it_is_published(tmp_path: Path) -> None:
    content, published, release = checkpoint(1.0), [], threading.Event()
    behind = saver(tmp_path, published)
    first = step_folder(tmp_path, 8)
    assert behind.save(first, part_of(content), content.state, verify=False).error is None
    original = folder.Draft.publish

    def held(self: folder.Draft, *args: object) -> folder.Manifest:
        release.wait(10)
        return original(self, *args)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folder.Draft, "publish", held)
        content.state["samples_seen"] = 16
        behind.save_behind(step_folder(tmp_path, 16), part_of(content), content.state)
        assert published == [first]
        assert folder.complete(tmp_path, STEP_FOLDER) == [first]
        release.set()
        behind.settle()
    assert published == [first, step_folder(tmp_path, 16)]


@pytest.mark.parametrize(
    "failpoint", ["ckpt.write=kill@4", "ckpt.rename=kill@2", "train.step=kill@7"]
)
def test_a_run_killed_in_a_save_behind_resumes_bit_equal(
    shards: Path, tmp_path: Path, failpoint: str
) -> None:
    recipe = write_recipe(tmp_path, shards, checkpoint={"asynchronous": True})
    assert train(recipe, tmp_path / "whole") == [0]
    run = tmp_path / "run"
    assert train(recipe, run, failpoint=failpoint) == [-9]
    assert train(recipe, run) == [0]
    assert_same_run(tmp_path / "whole", run)


def test_a_signal_waits_for_the_save_behind_and_saves_the_last_step(
    shards: Path, tmp_path: Path
) -> None:
    recipe, run = (
        write_recipe(tmp_path, shards, checkpoint={"asynchronous": True}),
        tmp_path / "run",
    )
    failpoint = "ckpt.write=sleep:0.5;train.step=term@4"
    assert train(recipe, run, failpoint=failpoint) == [75]
    names = sorted(path.name for path in (run / "checkpoints").iterdir())
    assert names == ["step-000000000024", "step-000000000032"]
    assert rows(run / "trace.jsonl")[-1]["samples_seen"] == 32
    assert folder.verify(last(run))


def test_three_failed_saves_behind_end_the_run_with_74(shards: Path, tmp_path: Path) -> None:
    recipe, run = (
        write_recipe(tmp_path, shards, checkpoint={"asynchronous": True}),
        tmp_path / "run",
    )
    failpoint = "ckpt.write=enospcx*"
    assert train(recipe, run, failpoint=failpoint, output=tmp_path / "log") == [74]
    assert "training goes on" in (tmp_path / "log.0").read_text()


def test_a_fault_lets_the_save_behind_come_to_its_end(shards: Path, tmp_path: Path) -> None:
    recipe, run = (
        write_recipe(tmp_path, shards, checkpoint={"asynchronous": True}),
        tmp_path / "run",
    )
    options = ("--guard.on_nonfinite=stop",)
    failpoint = "ckpt.write=sleep:0.4;train.loss_nan=nan@4"
    assert train(recipe, run, *options, failpoint=failpoint) == [76]
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-000000000024"]
    assert json.loads((run / "STATUS.json").read_text())["code"] == 76
