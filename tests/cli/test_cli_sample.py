"""`lit-restore sample`: each sample a function of its index, however it is made."""

from __future__ import annotations

import json
import os
import random
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support_autoencoder import FACTOR, save_autoencoder
from support_evaluation import KillingDisk, pixels_of, run, write_network, write_pictures
from support_fork import fork, wait_all

from lit_restore.cli.main import main
from lit_restore.diffusion import (
    Guidance,
    Result,
    SamplerOptions,
    sample,
    sample_generators,
    standard_normal,
)
from lit_restore.io import fs, images
from lit_restore.io.arrays import locate_rows
from lit_restore.io.disk import Disk
from lit_restore.io.quantise import to_uint8
from lit_restore.networks import DiT
from lit_restore.sampling import process
from lit_restore.weights import load_prior, save_exported
from lit_restore.weights.autoencoder import load_autoencoder

SIZE = 8


def write_backbone(
    path: Path, seed: int = 0, *, label_dropout: float = 0.1, **changes: Any
) -> Path:
    options = {"channels": 3, "size": SIZE, "width": 32, "depth": 2, "heads": 2, "classes": 3}
    torch.manual_seed(seed)
    net = DiT(**{**options, **changes})
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    model = {"interpolant": "gvp", "prediction": "velocity", "label_dropout": label_dropout}
    save_exported(
        path, net, info={"task": "generation", "profile": "ema", "config": {"model": model}}
    )
    return path


@pytest.fixture
def network(tmp_path: Path) -> Path:
    return write_backbone(tmp_path / "net.safetensors")


def make(network: Path, out: Path, *words: str | Path) -> int:
    """The command, four evaluations a sample unless `words` say otherwise."""
    cheap = [] if "--nfe" in words or "--solver" in words else ["--nfe", "4"]
    argv = ["sample", "--ckpt", network, "--out", out, "--devices", "cpu", *cheap, *words]
    return main([str(word) for word in argv])


def record(out: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((out / "samples.json").read_text())
    return content


def shown(out: Path) -> list[np.ndarray]:
    """The folder's images, by index."""
    return [pixels_of(out / row["file"]) for row in record(out)["samples"]]


def contents(out: Path) -> dict[str, bytes]:
    return {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file()}


# What is made -------------------------------------------------------------------------------------


def test_a_sample_is_its_indexs_noise_carried_by_the_guided_prior(
    network: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "out"
    words = ["--n", "5", "--seed", "7", "--class", "2,0", "--nfe", "6", "--guidance", "1.5"]
    more = ["--guidance_schedule", "power_cosine_data", "--guidance_interval", "0.2", "0.9"]
    assert make(network, out, *words, *more) == 0
    guidance = Guidance(scale=1.5, schedule="power_cosine_data", interval=(0.2, 0.9))
    prior, _ = load_prior(network, guidance=guidance)
    noise = standard_normal((3, SIZE, SIZE), sample_generators(7, range(5), "noise"))
    labels = torch.tensor([2, 0, 2, 0, 2])
    result = sample(prior, noise, labels, SamplerOptions(solver="heun", nfe=6))
    assert np.array_equal(np.stack(shown(out)), to_uint8((result.samples + 1) / 2))
    assert sorted(path.name for path in (out / "images").iterdir()) == [
        f"00000{index}-class{label}.png" for index, label in enumerate(labels.tolist())
    ]
    printed = capsys.readouterr()
    assert "5 samples of 5 evaluations each; grid.png, samples.json" in printed.out
    assert printed.err == "samples (5 of 5)\n"


def test_the_record_says_what_made_them(network: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert make(network, out, "--n", "2", "--solver", "dopri5", "--rtol", "1e-2") == 0
    found = record(out)
    assert found["complete"] is True
    settings = found["settings"]
    assert settings["sha256"] == fs.sha256(network)
    wanted = {"checkpoint": "net.safetensors", "profile": "ema", "seed": 0, "class": "0,1,2",
              "solver": "dopri5", "rtol": 0.01, "guidance": None, "precision": "32"}  # fmt: skip
    assert {name: settings[name] for name in wanted} == wanted
    assert "nfe" not in settings
    prior, _ = load_prior(network)
    noise = standard_normal((3, SIZE, SIZE), sample_generators(0, range(2), "noise"))
    options = SamplerOptions(solver="dopri5", rtol=1e-2)
    costs = sample(prior, noise, torch.tensor([0, 1]), options).nfe.tolist()
    rows = found["samples"]
    assert [(row["class"], row["nfe"]) for row in rows] == [(0, costs[0]), (1, costs[1])]
    assert [row["finished"] for row in rows] == [True, True]


def test_the_grid_shows_the_samples_a_class_a_column(network: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert make(network, out, "--n", "7") == 0
    grid, side = pixels_of(out / "grid.png"), SIZE + 2
    assert grid.shape == (3 * side - 2, 3 * side - 2, 3)
    for place, pixels in enumerate(shown(out)):
        top, left = place // 3 * side, place % 3 * side
        assert np.array_equal(grid[top : top + SIZE, left : left + SIZE], pixels)
    assert (grid[2 * side :, side:] == 255).all()


def test_the_array_holds_the_same_pixels_as_numpy_reads_it(network: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert make(network, out, "--n", "3", "--npz") == 0
    with np.load(out / "samples.npz") as held:
        assert held.files == ["arr_0"]
        assert np.array_equal(held["arr_0"], np.stack(shown(out)))
        assert held["arr_0"].dtype == np.uint8
    rows = locate_rows(out / "samples.npz", "arr_0")
    data = (out / "samples.npz").read_bytes()
    assert data[rows.offset : rows.offset + rows.stride] == shown(out)[0].tobytes()


def test_an_array_that_lacks_the_samples_that_were_added_goes(
    network: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert make(network, out, "--n", "2", "--npz") == 0
    assert make(network, out, "--n", "2") == 0
    assert (out / "samples.npz").exists()
    assert make(network, out, "--n", "3") == 0
    assert not (out / "samples.npz").exists()


def test_samples_without_a_label_are_those_of_no_class(network: Path, tmp_path: Path) -> None:
    assert make(network, tmp_path / "a", "--n", "2", "--class", "none") == 0
    assert [row["class"] for row in record(tmp_path / "a")["samples"]] == [None, None]
    prior, _ = load_prior(network)
    noise = standard_normal((3, SIZE, SIZE), sample_generators(0, range(2), "noise"))
    result = sample(prior, noise, torch.tensor([3, 3]), SamplerOptions(nfe=4))
    assert np.array_equal(np.stack(shown(tmp_path / "a")), to_uint8((result.samples + 1) / 2))


def test_no_label_is_refused_where_training_always_had_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    always = write_backbone(tmp_path / "net.safetensors", label_dropout=0)
    assert make(always, tmp_path / "a", "--n", "1", "--class", "none") == 2
    assert "label_dropout 0, so never without a label; give --class" in capsys.readouterr().err


def test_half_precision_stays_near(network: Path, tmp_path: Path) -> None:
    for precision in ("32", "bf16"):
        assert make(network, tmp_path / precision, "--n", "2", "--precision", precision) == 0
    whole, half = (np.stack(shown(tmp_path / p)).astype(int) for p in ("32", "bf16"))
    assert 0 < np.abs(whole - half).mean() < 3


# However it is made -------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", ["heun", "sde_euler"])
def test_neither_the_batch_nor_the_processes_nor_the_number_change_a_sample(
    solver: str, network: Path, tmp_path: Path
) -> None:
    words = ["--solver", solver, "--nfe", "4", "--guidance", "2"]
    ways: dict[str, list[str]] = {
        "whole": ["--n", "8"],
        "fours": ["--n", "8", "--batch", "4"],
        "threes": ["--n", "8", "--batch", "3"],
        "two": ["--n", "8", "--devices", "cpu,cpu"],
        "fewer": ["--n", "6"],
    }
    for way, more in ways.items():
        assert make(network, tmp_path / way, *words, *more) == 0
    assert make(network, tmp_path / "fewer", *words, "--n", "8") == 0
    whole = np.stack(shown(tmp_path / "whole"))
    assert len(np.unique(whole.reshape(8, -1), axis=0)) == 8
    for way in ways:
        assert np.array_equal(np.stack(shown(tmp_path / way)), whole), way
        settings = record(tmp_path / way)["settings"]
        assert settings == record(tmp_path / "whole")["settings"]
    assert record(tmp_path / "two")["made_by"]["devices"] == ["cpu", "cpu"]


def test_two_processes_take_every_other_sample(
    network: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = images.write_png

    def signed(path: Path, pixels: np.ndarray) -> None:
        real(path, pixels)
        fs.append(tmp_path / f"by-{os.getpid()}", f"{path.name[:6]}\n".encode())

    monkeypatch.setattr(images, "write_png", signed)
    assert make(network, tmp_path / "out", "--n", "5", "--devices", "cpu,cpu") == 0
    written = {p.name: p.read_text().split() for p in tmp_path.glob("by-*")}
    assert written.pop(f"by-{os.getpid()}") == ["grid.p"]
    assert sorted(written.values()) == [["000000", "000002", "000004"], ["000001", "000003"]]


def test_killed_anywhere_and_run_again_gives_the_same_folder(network: Path, tmp_path: Path) -> None:
    words = ["--n", "4", "--batch", "2", "--npz"]
    counting = KillingDisk()
    with fs.using(counting):
        assert make(network, tmp_path / "whole", *words) == 0
    expected = contents(tmp_path / "whole")
    assert set(expected) >= {"grid.png", "samples.json", "samples.npz"}
    assert not [name for name in expected if "tmp-" in name or name.endswith((".lock", ".jsonl"))]
    for number, at in enumerate(random.Random(0).sample(range(1, counting.count), 6)):
        out = tmp_path / f"killed-{number}"

        def child(out: Path = out, at: int = at) -> int:
            with fs.using(KillingDisk(at)):
                return make(network, out, *words)

        assert wait_all([fork(child, env={}, output=tmp_path / "log")], 60) == [-signal.SIGKILL]
        assert make(network, out, *words) == 0
        assert contents(out) == expected, at


def test_a_lost_process_is_77_and_the_rest_is_made_later(
    network: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words, ours = ["--n", "4", "--batch", "1", "--devices", "cpu,cpu"], os.getpid()
    assert make(network, tmp_path / "whole", *words) == 0

    class Dying(Disk):
        def rename(self, old: Path, new: Path) -> None:
            if os.getpid() != ours and new.name.startswith("000003"):
                os.kill(os.getpid(), signal.SIGKILL)
            super().rename(old, new)

    capsys.readouterr()
    with fs.using(Dying()):
        assert make(network, tmp_path / "out", *words) == 77
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.endswith("run the same command again, or with a smaller --batch")
    assert not list(tmp_path.rglob("tmp-*"))
    assert make(network, tmp_path / "out", *words) == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_running_commands_drafts_are_left_alone(network: Path, tmp_path: Path) -> None:
    from lit_restore.io.lock import RunLock

    out = tmp_path / "out"
    assert make(network, out, "--n", "1") == 0
    (out / "images" / "tmp-000001-class1.png-01234567").write_bytes(b"half")
    with RunLock(out):
        assert make(network, out, "--n", "2") == 2
    assert len(list(out.rglob("tmp-*"))) == 1
    assert make(network, out, "--n", "2") == 0
    assert not list(out.rglob("tmp-*"))


def test_what_is_there_is_not_made_again(
    network: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, made = tmp_path / "out", []
    real = process._published
    monkeypatch.setattr(process, "_published", lambda few, *a: made.extend(few) or real(few, *a))
    assert make(network, out, "--n", "4") == 0
    (out / "images" / "000002-class2.png").unlink()
    before = contents(out)
    assert make(network, out, "--n", "6") == 0
    assert made == [0, 1, 2, 3, 2, 4, 5]
    assert {name: contents(out)[name] for name in before if name.startswith("images")} == {
        name: data for name, data in before.items() if name.startswith("images")
    }
    assert make(network, out, "--n", "6") == 0
    assert len(made) == 7
    assert make(network, out, "--n", "3") == 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_schedulers_signal_is_75_and_the_rest_is_made_later(
    number: signal.Signals,
    network: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out, before = tmp_path / "out", signal.getsignal(number)
    real, written = images.write_png, []

    def stopping(path: Path, pixels: np.ndarray) -> None:
        written.append(path.name)
        real(path, pixels)
        if len(written) == 3:
            os.kill(os.getpid(), number)

    with monkeypatch.context() as patched:
        patched.setattr(images, "write_png", stopping)
        assert make(network, out, "--n", "6", "--batch", "2") == 75
    error = capsys.readouterr().err.splitlines()[-1]
    assert error == f"error: stopped by {number.name}; the same command makes what is missing"
    assert signal.getsignal(number) == before
    assert record(out)["complete"] is False
    assert make(network, out, "--n", "6", "--batch", "2") == 0
    assert record(out)["complete"] is True
    assert not (out / "made.jsonl").exists()


OTHER: dict[str, tuple[list[str], str]] = {
    "seed": (["--seed", "1"], "was made with seed 0, not 1; give another --out"),
    "nfe": (["--nfe", "8"], "was made with nfe 4, not 8"),
    "class": (["--class", "1"], 'was made with class "0,1,2", not "1"'),
    "guidance": (["--guidance", "2"], "was made with guidance none, not 2.0"),
    "solver": (["--solver", "euler", "--nfe", "4"], 'was made with solver "heun", not "euler"'),
    "precision": (["--precision", "bf16"], 'was made with precision "32", not "bf16"'),
    "fewer": (["--n", "1"], "holds 2 samples; give --n 2"),
}


@pytest.mark.parametrize("case", OTHER)
def test_a_folder_of_other_samples_is_left_alone(
    case: str, network: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words, message = OTHER[case]
    out = tmp_path / "out"
    assert make(network, out, "--n", "2") == 0
    before = contents(out)
    capsys.readouterr()
    assert make(network, out, *(["--n", "2"] if case != "fewer" else []), *words) == 2
    printed = capsys.readouterr().err
    assert printed.startswith(f"error: {out}: ")
    assert message in printed
    assert printed.count("\n") == 1
    left = contents(out)
    left.pop("run.lock", None)
    assert left == before


def test_other_weights_and_other_files_are_left_alone(
    network: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, mine = tmp_path / "out", write_pictures(tmp_path / "mine", ["a"])
    assert make(network, out, "--n", "1") == 0
    other = write_backbone(tmp_path / "other.safetensors", seed=1)
    capsys.readouterr()
    assert make(other, out, "--n", "1") == 2
    assert "was made with another checkpoint, net.safetensors" in capsys.readouterr().err
    assert make(network, mine) == 2
    assert "holds other things (a.png); --out takes a new folder" in capsys.readouterr().err
    assert [path.name for path in mine.iterdir()] == ["a.png"]
    pictures = write_pictures(tmp_path / "set" / "images", ["000000-class0"])
    before = contents(pictures)
    assert make(network, pictures.parent, "--n", "1") == 2
    assert "holds other things (images/000000-class0.png)" in capsys.readouterr().err
    assert contents(pictures) == before
    (out / "samples.json").write_text('{"format": 1}')
    assert make(network, out, "--n", "1") == 2
    assert "is not the record of a folder of samples" in capsys.readouterr().err


# Latents ------------------------------------------------------------------------------------------


def test_latents_are_decoded_by_their_autoencoder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    vae = save_autoencoder(tmp_path / "vae")
    network, out = write_backbone(tmp_path / "net.safetensors", channels=4), tmp_path / "out"
    assert make(network, out, "--n", "3", "--vae", vae) == 0
    prior, _ = load_prior(network)
    noise = standard_normal((4, SIZE, SIZE), sample_generators(0, range(3), "noise"))
    latents = sample(prior, noise, torch.arange(3), SamplerOptions(nfe=4)).samples
    with torch.no_grad():
        expected = to_uint8(load_autoencoder(vae).decode(latents))
    assert expected.shape[1:] == (FACTOR * SIZE, FACTOR * SIZE, 3)
    assert np.array_equal(np.stack(shown(out)), expected)
    capsys.readouterr()
    pixels = write_backbone(tmp_path / "pixels.safetensors")
    wide = save_autoencoder(tmp_path / "wide", latent_channels=8)
    for which, words, message in (
        (network, [], "makes latents of 4 channels; name their autoencoder: --vae FOLDER"),
        (network, ["--vae", wide], "has latents of 8 channels, the network makes 4"),
        (pixels, ["--vae", vae], "--vae: the network makes pixels; leave it out"),
        (network, ["--vae", tmp_path / "no"], "no such folder"),
    ):
        assert make(which, tmp_path / "none", *words) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


# What goes wrong ----------------------------------------------------------------------------------

WRONG: dict[str, tuple[list[str], str]] = {
    "no class of it": (["--class", "3"], "--class 3: 3 is not among 0 … 2"),
    "no number": (["--class", "cat"], "--class cat: expects numbers as in 0,1,2, or all, or none"),
    "no label to guide": (["--class", "none", "--guidance", "2"], "leaves nothing to guide"),
    "no solver": (["--solver", "magic"], "--solver: 'magic' is not one of euler, heun"),
    "no cost": (["--solver", "torchdiffeq:explicit_adams"], "so --nfe says nothing; take torchd"),
    "too few": (["--solver", "midpoint", "--nfe", "1"], "--nfe: 1 is not enough for one step"),
    "not for adaptive": (["--solver", "dopri5", "--nfe", "9"], "--nfe: dopri5 has no use for it"),
    "not for fixed": (["--rtol", "0.1"], "--rtol: heun has no use for it"),
    "no tolerance": (["--solver", "dopri5", "--atol", "-1"], "--atol: -1.0 is not positive"),
    "no interval": (
        ["--guidance", "2", "--guidance_interval", "0.8", "0.2"], "--guidance_interval: expects 0",
    ),
    "nothing to schedule": (["--guidance_schedule", "constant"], "needs a scale: --guidance 1.5"),
    "no schedule": (["--guidance", "2", "--guidance_schedule", "x"], "--guidance_schedule: 'x' is"),
    "infinite": (["--guidance", "inf"], "--guidance: inf is not finite"),
    "no samples": (["--n", "0"], "--n: 0 is below 1"),
    "no batch": (["--batch", "0"], "--batch: 0 is below 1"),
    "no such device": (["--devices", "tpu"], "--devices tpu: expects auto, cpu, or numb"),
    "no such GPU": (["--devices", "99"], "GPUs here; use cpu or auto"),
    "no such profile": (["--profile", "x"], "holds profile ema, not x"),
    "a file in the way": (["--out", "{net}"], "net.safetensors: is a file; --out names a folder"),
    "no place": (["--out", "/proc/x"], "cannot write"),
}  # fmt: skip


def test_memory_that_is_short_on_a_processor_is_told_too(
    network: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def greedy(*_: object) -> None:
        torch.empty(1 << 60, dtype=torch.uint8)

    monkeypatch.setattr(process, "_carried", greedy)
    assert make(network, tmp_path / "out", "--n", "1", "--batch", "9") == 2
    assert "error: --batch 9: not enough memory on cpu; lower it" in capsys.readouterr().err


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_one_line_and_nothing_is_written(
    case: str, network: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words, message = WRONG[case]
    assert make(network, tmp_path / "out", *(word.format(net=network) for word in words)) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1
    assert message in printed.err
    assert printed.out == ""
    assert [path.name for path in tmp_path.iterdir()] == ["net.safetensors"]


def test_a_network_without_classes_takes_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    network = write_backbone(tmp_path / "net.safetensors", classes=0)
    for words in (["--class", "0"], ["--class", "all"], ["--guidance", "2"]):
        assert make(network, tmp_path / "out", *words) == 2
        assert "has no classes" in capsys.readouterr().err
    assert make(network, tmp_path / "out", "--n", "2", "--class", "none") == 0
    assert make(network, tmp_path / "out", "--n", "2") == 0
    assert sorted(p.name for p in (tmp_path / "out" / "images").iterdir()) == [
        "000000.png", "000001.png",
    ]  # fmt: skip


def test_each_command_takes_the_networks_of_its_task(
    network: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    denoiser = write_network(tmp_path / "denoiser.safetensors")
    assert make(denoiser, tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert "was trained for denoiser, not for generation; use `lit-restore denoise`" in error
    photos = write_pictures(tmp_path / "photos", ["a"])
    assert main(["denoise", str(photos / "a.png"), "--ckpt", str(network), "--sigma", "9"]) == 2
    error = capsys.readouterr().err
    words = ["run", "--protocol", "denoise-25", "--data", photos, "--ckpt", network]
    assert run(*words, "--out", tmp_path / "evaluated") == 2
    for line in (error, capsys.readouterr().err):
        assert "net.safetensors: was trained for generation" in line
        assert line.count("\n") == 1
    assert {path.name for path in tmp_path.iterdir()} == {network.name, denoiser.name, "photos"}


def test_a_full_disk_is_74_and_can_be_gone_on_with(
    network: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Full(Disk):
        count = 0

        def write(self, fd: int, data: memoryview) -> None:
            self.count += 1
            if self.count > 3:
                raise OSError(28, "No space left on device")
            super().write(fd, data)

    with fs.using(Full()):
        assert make(network, tmp_path / "out", "--n", "4", "--batch", "2") == 74
    error = capsys.readouterr().err
    assert "cannot write (No space left on device); free some space" in error
    assert not list(tmp_path.rglob("tmp-*"))
    assert make(network, tmp_path / "out", "--n", "4", "--batch", "2") == 0


def test_a_solver_that_gives_up_is_3_and_says_on_which(
    network: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def giving_up(*args: Any, **options: Any) -> Result:
        found = sample(*args, **options)
        ended = torch.arange(len(found.finished)) != 1
        return Result(samples=found.samples, nfe=found.nfe, finished=ended)

    monkeypatch.setattr(process, "sample", giving_up)
    assert make(network, tmp_path / "out", "--n", "3", "--solver", "dopri5") == 3
    assert "failed: the solver gave up on 1 samples, the first of them 1" in capsys.readouterr().err
    finished = [row["finished"] for row in record(tmp_path / "out")["samples"]]
    assert finished == [True, False, True]
    assert make(network, tmp_path / "out", "--n", "3", "--solver", "dopri5") == 3


def test_samples_that_are_not_finite_are_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    network = write_backbone(tmp_path / "net.safetensors")
    real = process.standard_normal
    monkeypatch.setattr(process, "standard_normal", lambda *a, **k: real(*a, **k) * float("inf"))
    assert make(network, tmp_path / "out", "--n", "2") == 2
    assert "sample 0 is not finite" in capsys.readouterr().err
    assert not list((tmp_path / "out" / "images").iterdir())


def test_a_folder_in_use_is_refused(
    network: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from lit_restore.io.lock import RunLock

    with RunLock(tmp_path / "out"):
        assert make(network, tmp_path / "out") == 2
    assert f"out: in use by pid {os.getpid()}" in capsys.readouterr().err
