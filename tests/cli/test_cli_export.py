"""`lit-restore export` and `convert`: one file, one line, one exit code."""

import os

import numpy as np
import pytest
import torch

from lit_restore.cli.main import main
from lit_restore.io import fs
from lit_restore.networks import FFDNet
from lit_restore.weights import load_exported
from lit_restore.weights.checkpoint import Checkpoint, step_folder, write_checkpoint
from lit_restore.weights.exported import describe, read_info


@pytest.fixture
def run_folder(tmp_path):
    net = FFDNet(width=8, depth=3)
    average = {name: tensor + 1 for name, tensor in net.state_dict().items()}
    state = {
        "task": "denoiser",
        "samples_seen": 64,
        "network": describe(net),
        "profiles": ["ema"],
        "config": {"seed": 3},
        "fingerprints": {"data": "0"},
    }
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    write_checkpoint(
        step_folder(tmp_path / "run" / "checkpoints", 64),
        Checkpoint(net.state_dict(), {"ema": average}, {}, state),
    )
    return tmp_path / "run"


def test_export_writes_the_average_with_the_config(run_folder, tmp_path, capsys):
    out = tmp_path / "a.safetensors"
    assert main(["export", str(run_folder), "--out", str(out)]) == 0
    average = load_exported(out).state_dict()
    assert main(["export", str(run_folder), "--out", str(out), "--profile", "raw"]) == 0
    raw = load_exported(out).state_dict()
    assert all(torch.equal(average[name], tensor + 1) for name, tensor in raw.items())
    info = read_info(out)
    assert (info["profile"], info["samples_seen"], info["task"]) == ("raw", 64, "denoiser")
    assert info["config"] == {"seed": 3}
    assert info["source"] == "step-000000000064"
    assert "fingerprints" not in info
    assert capsys.readouterr().out.splitlines()[0].endswith("profile ema")


def test_convert_writes_a_network_that_loads(tmp_path):
    net = FFDNet(width=8, depth=3)
    arrays = {k.replace("body.", "conv"): t.numpy() for k, t in net.state_dict().items()}
    np.savez(tmp_path / "w.npz", **arrays)
    out = tmp_path / "a.safetensors"
    argv = ["convert", "--from", "ffdnet", str(tmp_path / "w.npz"), "--out", str(out)]
    assert main(argv) == 0
    assert load_exported(out).options == net.options
    assert read_info(out)["source"] == "w.npz"


def test_each_mistake_is_one_line_and_leaves_nothing(run_folder, tmp_path, capsys):
    good = tmp_path / "a.safetensors"
    table = [
        (["export", tmp_path / "no", "--out", good], "no such file"),
        (["export", run_folder, "--out", good, "--profile", "x"], "no profile x; it has ema, raw"),
        (["export", run_folder, "--out", tmp_path / "a.pth"], "must end in .safetensors"),
        (["export", run_folder, "--out", tmp_path / "no" / "a.safetensors"], "make it first"),
        (["convert", "--from", "ffdnet", tmp_path / "no.npz", "--out", good], "no such file"),
    ]
    for argv, message in table:
        assert main([str(word) for word in argv]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.startswith("error: ")
        assert captured.err.count("\n") == 1
        assert message in captured.err
    assert sorted(os.listdir(tmp_path)) == ["run"]


def test_a_full_disk_exits_74(run_folder, tmp_path, monkeypatch, capsys):
    def refuse(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(fs.current()), "write", refuse)
    assert main(["export", str(run_folder), "--out", str(tmp_path / "a.safetensors")]) == 74
    assert "cannot write (No space left on device)" in capsys.readouterr().err
    assert sorted(os.listdir(tmp_path)) == ["run"]
