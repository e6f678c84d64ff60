"""Bad input: one clear line, the right code, nothing half-written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import encoded, picture, write_tar
from support_runs import last, rows, tensors_of, train, write_recipe

from lit_restore.cli.keys import KeyChecker
from lit_restore.cli.parser import one_line
from lit_restore.errors import UserError
from lit_restore.io.remote import Network


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_tar(folder / "train-0.tar", [(f"{k}.png", encoded(picture(k))) for k in range(9)])
    return folder


def empty(tmp: Path) -> str:
    (tmp / "empty").mkdir()
    return str(tmp / "empty")


def mixed(tmp: Path) -> str:
    members = [(f"{k}.png", encoded(picture(k, 40, 40 + 8 * k))) for k in range(9)]
    return str(write_tar(tmp / "mixed.tar", members))


Case = tuple[Callable[[Path], dict[str, Any]], tuple[str, ...], int, list[str]]

CASES: dict[str, Case] = {
    "missing shard": (
        lambda tmp: {"data": {"train": str(tmp / "gone.tar")}}, (), 2, ["data.train", "gone.tar"],
    ),
    "empty folder": (
        lambda tmp: {"data": {"train": empty(tmp)}}, (), 2, ["data.train", "no shard"],
    ),
    "wrong key in a file": (
        lambda tmp: {"data": {"global_bacth": 8}}, (), 2,
        ["recipe.yaml", "data.global_bacth is not an option", "data.global_batch?"],
    ),
    "wrong key of the network": (
        lambda tmp: {"model": {"net": {"init_args": {"widht": [8]}}}}, (), 2,
        ["model.net.widht is not an option", "model.net.widths?"],
    ),
    "wrong option": (
        lambda tmp: {}, ("--model.sigma_mx", "1"), 2,
        ["model.sigma_mx is not an option", "model.sigma_max?"],
    ),
    "wrong network": (
        lambda tmp: {"model": {"net": {"class_path": "UNett"}}}, (), 2, ["UNett", "UNet?"],
    ),
    "wrong type": (
        lambda tmp: {"total_samples": "many"}, (), 2, ["total_samples", "an integer", "many"],
    ),
    "wrong type of a nested option": (
        lambda tmp: {"model": {"optimizer": {"lr": "fast"}}}, (), 2, ["model.optimizer", "fast"],
    ),
    "an option of Lightning's that would fight ours": (
        lambda tmp: {"trainer": {"max_steps": 5}}, (), 2, ["trainer.max_steps", "total_samples"],
    ),
    "the same on the command line": (
        lambda tmp: {}, ("--trainer.accumulate_grad_batches", "2"), 2,
        ["trainer.accumulate_grad_batches", "data.micro_batch"],
    ),
    "no task": (lambda tmp: {"task": None}, (), 2, ["task"]),
    "unknown task": (lambda tmp: {"task": "denoise"}, (), 2, ["task", "denoiser"]),
    "impossible crop": (
        lambda tmp: {"data": {"crop": 512}}, (), 2, ["train-0.tar", "smaller than the 512 crop"],
    ),
    "crop the network cannot take": (
        lambda tmp: {"data": {"crop": 17}}, (), 2, ["data.crop", "multiple of 4", "16 or 20"],
    ),
    "whole images of different sizes": (
        lambda tmp: {"data": {"crop": None, "train": mixed(tmp)}}, (), 2, ["one batch", "crop"],
    ),
    "batch that does not divide": (
        lambda tmp: {"data": {"global_batch": 8, "micro_batch": 3}}, (), 2,
        ["data.micro_batch", "2 or 4"],
    ),
    "run that does not divide": (
        lambda tmp: {"total_samples": 100}, (), 2, ["total_samples", "96 or 104"],
    ),
    "precision that cannot train here": (
        lambda tmp: {"trainer": {"precision": "16-mixed"}}, (), 2,
        ["trainer.precision", "bf16-mixed"],
    ),
    "class that may not be named": (
        lambda tmp: {"trainer": {"callbacks": [{"class_path": "os.system"}]}}, (), 2,
        ["recipe.yaml", "os.system", "not allowed"],
    ),
    "negative noise": (
        lambda tmp: {"model": {"sigma_max": -1.0}}, (), 2, ["model.sigma_max"],
    ),
    "an average described twice": (
        lambda tmp: {"ema": {"profiles": {"ema": {"half_life": 9, "sigma_rel": 0.1}}}}, (), 2,
        ["ema.profiles", "either half_life or sigma_rel"],
    ),
    "an average that forgets nothing": (
        lambda tmp: {"ema": {"profiles": {"ema": {"half_life": -5}}}}, (), 2, ["ema.profiles"],
    ),
    "an average without a name": (
        lambda tmp: {"ema": {"profiles": {"raw": {"half_life": 5}}}}, (), 2, ["ema.profiles"],
    ),
    "device that is not here": (
        lambda tmp: {"trainer": {"accelerator": "foo"}}, (), 2, ["foo"],
    ),
    "strategy that does not exist": (
        lambda tmp: {"trainer": {"strategy": "foo"}}, (), 2, ["foo"],
    ),
    "validation crop larger than its pictures": (
        lambda tmp: {"data": {"val_crop": 1000}}, (), 2, ["skimage.data.astronaut", "1000 crop"],
    ),
    "crop of nothing": (lambda tmp: {"data": {"crop": 0}}, (), 2, ["data.crop", "below 1"]),
    "fewer workers than none": (
        lambda tmp: {"data": {"workers": -1}}, (), 2, ["data.workers", "below 0"],
    ),
    "schedule in negative images": (
        lambda tmp: {"checkpoint": {"every": -1}}, (), 2, ["checkpoint.every", "below 0"],
    ),
    "no noise level to validate": (
        lambda tmp: {"model": {"val_sigmas": []}}, (), 2, ["model.val_sigmas"],
    ),
    "negative learning rate": (
        lambda tmp: {"model": {"optimizer": {"lr": -1.0}}}, (), 2, ["model.optimizer.lr"],
    ),
    "network with negative widths": (
        lambda tmp: {"model": {"net": {"init_args": {"widths": [8, -4]}}}}, (), 2,
        ["model.net.widths", "positive"],
    ),
    "seed out of range": (lambda tmp: {"seed": -1}, (), 2, ["seed"]),
    "a group that is nothing": (
        lambda tmp: {"data": None}, (), 2, ["recipe.yaml", "data expects options"],
    ),
    "a config inside a config": (
        lambda tmp: {"config": "/etc/hostname"}, (), 2, ["recipe.yaml", "config", "-c"],
    ),
    "unknown group of the fingerprint": (
        lambda tmp: {"checkpoint": {"allow_change": ["foo"]}}, (), 2, ["allow_change", "foo"],
    ),
    "empty path of data": (lambda tmp: {"data": {"train": ""}}, (), 2, ["data.train", "empty"]),
    "empty path to start from": (lambda tmp: {"init_from": ""}, (), 2, ["init_from", "empty"]),
    "missing checkpoint": (
        lambda tmp: {}, ("--resume", "nowhere/step-000000000008"), 2, ["no such checkpoint"],
    ),
    "missing file to start from": (
        lambda tmp: {}, ("--init_from", "nowhere.safetensors"), 2, ["nowhere.safetensors"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", list(CASES))
def test_bad_input_is_one_line_and_leaves_nothing_behind(
    name: str, shards: Path, tmp_path: Path
) -> None:
    over, options, code, words = CASES[name]
    recipe = write_recipe(tmp_path, shards, **over(tmp_path))
    run = tmp_path / "run"
    assert train(recipe, run, *options, output=tmp_path / "log") == [code]
    lines = (tmp_path / "log.0").read_text().splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    assert len(errors) == 1, lines
    assert "Traceback" not in "\n".join(lines)
    missing = [word for word in words if word not in errors[0]]
    assert not missing, errors[0]
    assert not list(run.glob("checkpoints/*"))
    assert not list(tmp_path.rglob("tmp-*"))
    assert not run.exists()


def test_a_checkpoint_of_another_network_is_refused(shards: Path, tmp_path: Path) -> None:
    recipe, run = write_recipe(tmp_path, shards), tmp_path / "run"
    assert train(recipe, run, failpoint="train.step=kill@5") == [-9]
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file() and "step-" in str(p)}
    other = ("--model.net.widths=[8,16]",)
    assert train(recipe, run, *other, output=tmp_path / "log") == [2]
    text = (tmp_path / "log.0").read_text()
    assert "another run's checkpoint: model." in text
    assert {p: p.read_bytes() for p in before} == before


def test_a_refused_command_leaves_the_status_of_the_run_alone(shards: Path, tmp_path: Path) -> None:
    recipe, run = write_recipe(tmp_path, shards), tmp_path / "run"
    assert train(recipe, run) == [0]
    before = (run / "STATUS.json").read_bytes()
    assert train(recipe, run, "--resume=false") == [2]
    assert train(recipe, run, "--data.train=nowhere") == [2]
    assert (run / "STATUS.json").read_bytes() == before


def test_without_a_command_or_a_run_folder_it_says_what_to_give(
    shards: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from support_fork import run_ranks

    from lit_restore.cli.train import main

    assert run_ranks(lambda rank: main([]), 1) == [2]
    assert "train.py fit -c" in capfd.readouterr().err
    recipe = write_recipe(tmp_path, shards)
    assert run_ranks(lambda rank: main(["fit", "-c", str(recipe), "--run_dir", ""]), 1) == [2]
    assert "run_dir: is empty" in capfd.readouterr().err


def test_changed_data_is_refused_unless_allowed(shards: Path, tmp_path: Path) -> None:
    recipe, run = write_recipe(tmp_path, shards), tmp_path / "run"
    assert train(recipe, run, failpoint="train.step=kill@5") == [-9]
    write_tar(shards / "train-1.tar", [("x.png", encoded(picture(77)))])
    try:
        assert train(recipe, run, output=tmp_path / "log") == [2]
        text = (tmp_path / "log.0").read_text()
        assert "data.shards" in text
        assert "--checkpoint.allow_change [data]" in text
        assert train(recipe, run, "--checkpoint.allow_change", "[data]") == [0]
    finally:
        (shards / "train-1.tar").unlink()


def test_a_full_disk_fails_the_save_and_training_goes_on(shards: Path, tmp_path: Path) -> None:
    recipe, run = write_recipe(tmp_path, shards), tmp_path / "run"
    full = "ckpt.fsync=enospc@5x2"
    assert train(recipe, run, failpoint=full, output=tmp_path / "log") == [0]
    assert "training goes on" in (tmp_path / "log.0").read_text()
    assert rows(run / "trace.jsonl")[-1]["samples_seen"] == 96
    assert not list((run / "checkpoints").glob("tmp-*"))


def test_a_full_disk_loses_a_record_and_not_the_run(shards: Path, tmp_path: Path) -> None:
    recipe, run = write_recipe(tmp_path, shards), tmp_path / "run"
    assert train(recipe, run, failpoint="record.append=enospc@4", output=tmp_path / "log") == [0]
    assert "a record is lost" in (tmp_path / "log.0").read_text()
    assert rows(run / "trace.jsonl")[-1]["samples_seen"] == 96


def test_three_failed_saves_in_a_row_end_the_run_with_74(shards: Path, tmp_path: Path) -> None:
    recipe, run = write_recipe(tmp_path, shards), tmp_path / "run"
    failpoint = "ckpt.write=enospcx*"
    assert train(recipe, run, failpoint=failpoint, output=tmp_path / "log") == [74]
    assert json.loads((run / "STATUS.json").read_text())["code"] == 74
    assert rows(run / "trace.jsonl")[-1]["samples_seen"] == 72  # the third save


def test_a_full_disk_at_preemption_ends_with_74(shards: Path, tmp_path: Path) -> None:
    recipe, run = write_recipe(tmp_path, shards), tmp_path / "run"
    failpoint = "train.step=term@2;ckpt.write=enospcx*"
    assert train(recipe, run, failpoint=failpoint, output=tmp_path / "log") == [74]


def test_a_nan_step_is_skipped_and_its_batch_kept(shards: Path, tmp_path: Path) -> None:
    recipe, run = write_recipe(tmp_path, shards), tmp_path / "run"
    failpoint = "train.loss_nan=nan@4"
    assert train(recipe, run, failpoint=failpoint, output=tmp_path / "log") == [0]
    assert "not finite; the step is skipped" in (tmp_path / "log.0").read_text()
    assert len(list(run.glob("badbatch-000000000032-r0.safetensors"))) == 1
    assert sum(row.get("skipped_steps", 0) for row in rows(run / "metrics.jsonl")) == 1
    assert all(bool(t.isfinite().all()) for t in tensors_of(run).values())


@pytest.mark.parametrize(
    ("options", "failpoint", "seen"),
    [
        (("--guard.on_nonfinite", "stop"), "train.loss_nan=nan@4", 32),
        ((), "train.loss_nan=nan@2x10", 88),
    ],
)
def test_nan_stops_with_76(
    shards: Path, tmp_path: Path, options: tuple[str, ...], failpoint: str, seen: int
) -> None:
    recipe, run = write_recipe(tmp_path, shards), tmp_path / "run"
    assert train(recipe, run, *options, failpoint=failpoint, output=tmp_path / "log") == [76]
    assert f"at sample {seen} is not finite" in (tmp_path / "log.0").read_text()
    assert all(bool(t.isfinite().all()) for t in tensors_of(run).values()) if seen > 32 else True


def test_nine_nan_steps_in_a_row_are_survived(shards: Path, tmp_path: Path) -> None:
    recipe, run = write_recipe(tmp_path, shards), tmp_path / "run"
    assert train(recipe, run, failpoint="train.loss_nan=nan@2x9") == [0]
    assert len(list(run.glob("badbatch-*"))) == 3


def test_a_fine_tune_reports_what_it_took_over(shards: Path, tmp_path: Path) -> None:
    recipe, run = write_recipe(tmp_path, shards), tmp_path / "run"
    assert train(recipe, run) == [0]
    options = ("--init_from", str(last(run)), "--model.net.depths=[1,2]")
    assert train(recipe, tmp_path / "tuned", *options, output=tmp_path / "log") == [0]
    text = (tmp_path / "log.0").read_text()
    assert "tensors loaded" in text
    assert "missing" in text


def test_too_many_bad_samples_end_the_run_and_are_listed(tmp_path: Path) -> None:
    folder = tmp_path / "bad"
    folder.mkdir()
    members = [(f"{k}.png", encoded(picture(k))) for k in range(12)]
    for k in (3, 5, 8):
        members[k] = (f"{k}.png", members[k][1][:150])
    write_tar(folder / "t.tar", members)
    recipe, run = write_recipe(tmp_path, folder), tmp_path / "run"
    assert train(recipe, run, output=tmp_path / "log") == [0]
    assert len(json.loads((run / "bad_samples.json").read_text())) == 3
    strict = ("--data.max_bad", "2")
    assert train(recipe, tmp_path / "strict", *strict, output=tmp_path / "log2") == [2]
    assert "more than 2 samples cannot be read" in (tmp_path / "log2.0").read_text()


def test_an_unreadable_shard_ends_the_run_unless_it_may_be_left_out(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    write_tar(folder / "a.tar", [(f"{k}.png", encoded(picture(k))) for k in range(9)])
    (folder / "b.tar").write_bytes((folder / "a.tar").read_bytes()[:3000])
    recipe, run = write_recipe(tmp_path, folder), tmp_path / "run"
    assert train(recipe, run, output=tmp_path / "log") == [2]
    assert "b.tar" in (tmp_path / "log.0").read_text()
    assert train(recipe, run, "--data.max_bad_shards=1", output=tmp_path / "log2") == [0]
    assert "left out" in (tmp_path / "log2.0").read_text()
    assert list(json.loads((run / "bad_samples.json").read_text())) == [str(folder / "b.tar")]


def test_secrets_are_in_no_line_and_no_file(shards: Path, tmp_path: Path) -> None:
    url = "https://user:hunter2secret@127.0.0.1:9/x.tar?token=abcdef123456"
    recipe, run = write_recipe(tmp_path, shards), tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lit_restore.data.module.NETWORK", Network(waits=()))
        assert train(recipe, run, f"--data.train={url}", output=tmp_path / "log") == [2]
    project = "--wandb.project=https://u:hunter2secret@host/?api_key=abcdef123456"
    assert train(recipe, run, project, output=tmp_path / "log2") == [0]
    texts = [p.read_bytes() for p in tmp_path.rglob("*") if p.is_file() and p != recipe]
    assert texts
    assert not [t for t in texts if b"hunter2secret" in t or b"abcdef123456" in t]


def test_the_key_walk_knows_groups_values_and_classes() -> None:
    checker = KeyChecker(["a.b", "a.c", "net"], {"net": {"Path": Path}})
    checker.check({"a": {"b": {"free": 1}}, "net": "Path"}, "f.yaml")
    with pytest.raises(UserError, match=r"f\.yaml: a\.d is not an option"):
        checker.check({"a": {"d": 1}}, "f.yaml")
    with pytest.raises(UserError, match="x is not an option"):
        checker.check_key("x")


@pytest.mark.parametrize(
    ("message", "line"),
    [
        (
            'Parser key "a.b":\n  Does not validate against any of the Union subtypes\n'
            "  - Expected a <class 'int'>. Got value: many\n",
            "a.b expects an integer, got many",
        ),
        ('Key "model.net" is required but not included', "model.net is required"),
    ],
)
def test_parser_messages_become_one_line(message: str, line: str) -> None:
    assert one_line(message).startswith(line)
