"""One function opens exports, checkpoints and runs, and says which of them it took."""

import pytest
import torch

from lit_restore.errors import UserError
from lit_restore.networks import FFDNet
from lit_restore.weights import load_network, save_exported
from lit_restore.weights.checkpoint import Checkpoint, step_folder, write_checkpoint
from lit_restore.weights.exported import describe

OPTIONS = {"width": 8, "depth": 3}


def net_of(value):
    net = FFDNet(**OPTIONS)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.fill_(value)
    return net


def value_of(loaded):
    return next(loaded.net.parameters()).flatten()[0].item()


def checkpoint(run, samples_seen, *, profiles=("ema", "slow"), raw=1.0):
    """A checkpoint whose raw weights are all `raw`, its averages `raw` + 0.25, + 0.5 …"""
    averages = {name: net_of(raw + 0.25 * (i + 1)).state_dict() for i, name in enumerate(profiles)}
    state = {
        "task": "denoiser",
        "samples_seen": samples_seen,
        "network": describe(net_of(raw)),
        "profiles": list(profiles),
        "config": {"seed": 1},
    }
    path = step_folder(run / "checkpoints", samples_seen)
    (run / "checkpoints").mkdir(parents=True, exist_ok=True)
    write_checkpoint(path, Checkpoint(net_of(raw).state_dict(), averages, {}, state))
    return path


def test_a_run_gives_its_newest_checkpoint_and_first_average(tmp_path):
    checkpoint(tmp_path, 64, raw=1.0)
    newest = checkpoint(tmp_path, 128, raw=3.0)
    for path in (tmp_path, tmp_path / "checkpoints", newest):
        loaded = load_network(path)
        assert value_of(loaded) == 3.25
        assert loaded.info["profile"] == "ema"
        assert loaded.info["samples_seen"] == 128
        assert loaded.source == newest
        assert not loaded.net.training


@pytest.mark.parametrize(("profile", "value"), [("raw", 1.0), ("ema", 1.25), ("slow", 1.5)])
def test_each_profile_can_be_chosen(profile, value, tmp_path):
    loaded = load_network(checkpoint(tmp_path, 64), profile=profile)
    assert value_of(loaded) == value
    assert loaded.info["profile"] == profile


def test_without_averages_the_weights_themselves_are_taken(tmp_path):
    assert value_of(load_network(checkpoint(tmp_path, 64, profiles=()))) == 1.0


def test_an_unfinished_newest_checkpoint_is_passed_over(tmp_path):
    whole = checkpoint(tmp_path, 64)
    (checkpoint(tmp_path, 128) / "COMPLETE").unlink()
    assert load_network(tmp_path).source == whole


def test_exported_files_load_with_their_info(tmp_path):
    save_exported(tmp_path / "a.safetensors", net_of(2.0), info={"profile": "ema"})
    loaded = load_network(tmp_path / "a.safetensors", profile="ema")
    assert value_of(loaded) == 2.0
    assert loaded.info["profile"] == "ema"


def flip(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))


def test_what_cannot_be_loaded_is_refused_in_one_line(tmp_path):
    good = checkpoint(tmp_path / "run", 64)
    save_exported(tmp_path / "a.safetensors", net_of(1.0), info={"profile": "ema"})
    (tmp_path / "empty" / "checkpoints").mkdir(parents=True)
    missing = good.with_name("step-000000000999")
    table = [
        (good, "fast", "holds no profile fast; it has ema, slow, raw"),
        (tmp_path / "a.safetensors", "raw", "holds profile ema, not raw"),
        (missing, None, "no such checkpoint; newest complete is step-000000000064"),
        (tmp_path / "empty", None, "holds no complete checkpoint"),
        (tmp_path / "empty" / "checkpoints", None, "holds no complete checkpoint"),
        (tmp_path / "a.safetensor", None, "no such file; did you mean a.safetensors"),
        (tmp_path / "nowhere", None, "no such file"),
    ]
    for path, profile, message in table:
        with pytest.raises(UserError, match=message) as error:
            load_network(path, profile=profile)
        assert str(error.value).startswith(str(path))


def test_a_flipped_byte_is_named(tmp_path):
    path = checkpoint(tmp_path, 64)
    load_network(path)
    flip(path / "ema.safetensors")
    with pytest.raises(UserError, match=r"ema\.safetensors: sha256 differs from the manifest"):
        load_network(path)


def test_an_unsealed_checkpoint_is_named(tmp_path):
    path = checkpoint(tmp_path, 64)
    (path / "COMPLETE").unlink()
    with pytest.raises(UserError, match="no COMPLETE: the save did not finish"):
        load_network(path)
