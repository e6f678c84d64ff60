"""Exported files rebuild the network they were written from, and nothing else."""

import json

import pytest
import torch

from lit_restore.errors import UserError
from lit_restore.io import fs, tensors
from lit_restore.networks import NETWORKS, FFDNet, MIRNet, UNet
from lit_restore.weights import load_exported, save_exported
from lit_restore.weights.exported import read_info

SMALL = {
    "UNet": {"widths": (8, 12), "depths": (1, 1)},
    "MIRNet": {"width": 8, "rrgs": 1},
    "FFDNet": {"width": 8, "depth": 3},
    "DiMSUM": {"size": 16, "width": 64, "depth": 1, "fusion_heads": 2, "classes": 2},
    "DiT": {"size": 16, "width": 32, "depth": 1, "heads": 2, "classes": 2},
    "EDSR": {"width": 8, "depth": 1, "scale": 2},
    "FusionNet": {"width": 8, "num_convs": 2, "growth": 4, "time_dim": 8, "residual": "average"},
    "TimeAverage": {"time_dim": 8, "time_hidden": 8},
    "WaveletAverage": {"levels": 2},
    "BSRT": {"frames": 2, "width": 8, "embed": 8, "entry_depth": 1, "depths": (1,), "heads": 2,
             "groups": 2},
}  # fmt: skip


def written(path, state, about):
    """A file with any content, good or bad."""
    with fs.HashingFile(path) as file:
        metadata = {} if about is None else {"lit_restore": about}
        tensors.save_tensors(file, state, metadata)
    return path


def about(name="FFDNet", options=None, **more):
    options = SMALL["FFDNet"] if options is None else options
    return json.dumps({"format": 1, "network": {"name": name, "options": options}, **more})


@pytest.fixture
def state():
    return FFDNet(**SMALL["FFDNet"]).state_dict()


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_a_network_comes_back_bit_equal_in_evaluation_mode(name, tmp_path):
    net = NETWORKS[name](**SMALL[name])
    save_exported(tmp_path / "a.safetensors", net, info={"task": "denoiser"})
    back = load_exported(tmp_path / "a.safetensors")
    assert type(back) is type(net)
    assert back.options == net.options
    assert not back.training
    assert all(torch.equal(t, back.state_dict()[k]) for k, t in net.state_dict().items())


def test_info_comes_back_beside_format_and_network(tmp_path):
    net = UNet(**SMALL["UNet"])
    save_exported(tmp_path / "a.safetensors", net, info={"samples_seen": 64, "config": {"a": [1]}})
    assert read_info(tmp_path / "a.safetensors") == {
        "format": 1,
        "network": {"name": "UNet", "options": net.options},
        "samples_seen": 64,
        "config": {"a": [1]},
    }


def test_a_failed_export_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    net = FFDNet(**SMALL["FFDNet"])
    save_exported(path, net, info={})
    before = path.read_bytes()

    def refuse(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(fs.current()), "write", refuse)
    with pytest.raises(OSError, match="No space"):
        save_exported(path, net, info={"task": "other"})
    monkeypatch.undo()
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]
    assert path.read_bytes() == before


def test_other_precisions_load_as_float32(tmp_path, state):
    half = {name: tensor.bfloat16() for name, tensor in state.items()}
    net = load_exported(written(tmp_path / "a.safetensors", half, about()))
    assert {p.dtype for p in net.parameters()} == {torch.float32}


BAD = {
    "no description": (None, "was not exported by lit_restore"),
    "no JSON": ("{", "its description is damaged"),
    "no format": ("{}", "its description is damaged"),
    "a list": ("[]", "its description is damaged"),
    "newer": ('{"format": 2}', "was written by a newer lit_restore"),
    "no network": ('{"format": 1}', "does not say which network"),
    "class path": (about("os.system"), "holds network os.system; known are UNet, MIRNet, FFDNet"),
    "no such name": (about("Mirnet"), "holds network Mirnet; known are"),
    "wrong option": (about(options={"widht": 8}), "its options are not those of FFDNet"),
    "wrong type": (about(options={"width": "8"}), "width: expects a positive integer, got '8'"),
    "bad value": (about(options={"depth": 1}), r"cannot be built: depth: 1 is below 2"),
    "huge": (about(options={"depth": 10**9}), "its options are not those of FFDNet"),
    "other size": (about(options={"width": 8, "depth": 4}), "4 of 8 tensors match FFDNet"),
    "larger than memory": (about(options={"width": 65536, "depth": 60}), "of 120 tensors match"),
    "other network": (about("MIRNet", SMALL["MIRNet"]), "0 of 104 tensors match MIRNet"),
}


@pytest.mark.parametrize("case", BAD)
def test_files_of_anything_else_are_refused_in_one_line(case, tmp_path, state):
    description, message = BAD[case]
    path = written(tmp_path / "a.safetensors", state, description)
    with pytest.raises(UserError, match=message) as error:
        load_exported(path)
    assert error.value.where == str(path)
    assert "\n" not in str(error.value)


def test_the_same_file_with_a_right_description_loads(tmp_path, state):
    assert isinstance(load_exported(written(tmp_path / "a.safetensors", state, about())), FFDNet)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_are_counted_and_refused(bad, tmp_path, state):
    state["body.1.bias"][:4] = bad
    path = written(tmp_path / "a.safetensors", state, about())
    with pytest.raises(UserError, match=r"body\.1\.bias holds 4 non-finite values"):
        load_exported(path)


@pytest.mark.parametrize("change", ["missing", "unexpected", "shape"])
def test_one_wrong_tensor_is_enough_to_refuse(change, tmp_path, state):
    tensor = state.pop("body.2.bias")
    if change == "unexpected":
        state |= {"body.2.bias": tensor, "more": tensor}
    if change == "shape":
        state |= {"body.2.bias": tensor[:-1].clone()}
    path = written(tmp_path / "a.safetensors", state, about())
    with pytest.raises(UserError, match="of 6 tensors match FFDNet"):
        load_exported(path)


def test_mirnet_export_holds_each_shared_weight_once(tmp_path):
    net = MIRNet(width=8, rrgs=1)
    save_exported(tmp_path / "a.safetensors", net, info={})
    entries = tensors.read_header(tmp_path / "a.safetensors").entries
    assert sum(entry.end - entry.begin for entry in entries) == 4 * sum(
        p.numel() for p in net.parameters()
    )
