"""Foreign weights give their published results, and only through the right layout."""

from pathlib import Path

import numpy as np
import pytest
import torch

from lit_restore.errors import UserError
from lit_restore.io import fs, images
from lit_restore.io.archive import scan_tar
from lit_restore.networks import FFDNet, apply_padded
from lit_restore.networks.bsrt import preset
from lit_restore.seeding import torch_generator
from lit_restore.weights import foreign
from lit_restore.weights.foreign import adapt_ffdnet, load_foreign, split_member

SHARED = Path(__file__).parents[3] / "shared" / "data"
NAMES = ("bsd100/108082", "bsd100/119082")


def official(channels=3, width=8, depth=3):
    """A state dict laid out as the published ones, random."""
    net = FFDNet(channels=channels, width=width, depth=depth)
    return {k.replace("body.", "conv"): t for k, t in net.state_dict().items()}


def test_second_and_third_sub_image_change_places_in_and_out():
    stored = official()
    stored["conv2.bias"] = torch.arange(12.0)
    net, state = adapt_ffdnet(stored, "f")
    order = [0, 2, 1, 3, 4, 6, 5, 7, 8, 10, 9, 11]
    assert state["body.2.bias"].tolist() == order
    assert torch.equal(state["body.2.weight"], stored["conv2.weight"][order])
    assert torch.equal(state["body.0.weight"], stored["conv0.weight"][:, [*order, 12]])
    assert torch.equal(state["body.1.weight"], stored["conv1.weight"])
    net.load_state_dict(state)


def test_adapted_network_is_the_official_one_on_the_transposed_image():
    """Column-major sub-images of an image are row-major ones of its transpose."""
    stored = official()
    for i in range(3):  # kernels that are their own transpose
        weight = stored[f"conv{i}.weight"]
        stored[f"conv{i}.weight"] = (weight + weight.transpose(2, 3)) / 2
    net, state = adapt_ffdnet(stored, "f")
    net.load_state_dict(state)
    rows = FFDNet(width=8, depth=3)
    rows.load_state_dict({k.replace("conv", "body."): t for k, t in stored.items()})
    x, sigma = torch.rand(1, 3, 8, 12), torch.full((1,), 0.1)
    there_and_back = rows(x.transpose(2, 3), sigma).transpose(2, 3)
    assert torch.allclose(net(x, sigma), there_and_back, atol=1e-6)
    assert not torch.allclose(rows(x, sigma), there_and_back, atol=1e-3)


def test_size_is_read_from_the_tensors():
    net, _ = adapt_ffdnet(official(channels=1, width=8, depth=5), "f")
    assert net.options == {"channels": 1, "width": 8, "depth": 5}


@pytest.mark.parametrize(
    "damage", ["empty", "no first", "no middle", "far", "more", "shape", "nan"]
)
def test_other_tensors_are_refused_in_one_line(damage, monkeypatch):
    stored = official()
    if damage == "empty":
        stored = {}
    elif damage == "no first":
        del stored["conv0.weight"]
    elif damage == "no middle":
        del stored["conv1.bias"]
    elif damage == "far":  # a network of a billion layers, if it were believed
        stored["conv1000000000.weight"] = torch.zeros(4, 8, 3, 3)
    elif damage == "more":
        stored["head.weight"] = torch.zeros(1)
    elif damage == "shape":
        stored["conv0.weight"] = stored["conv0.weight"][:, :3]
    else:
        stored["conv1.bias"][0] = float("nan")
    monkeypatch.setattr(foreign, "load_foreign_weights", lambda *_: stored)
    message = {
        "empty": "expected conv0.weight",
        "no first": "expected conv0.weight",
        "far": "expected conv0.weight",
        "nan": r"body\.1\.bias holds 1 non-finite value$",
    }.get(damage, "tensors match FFDNet")
    with pytest.raises(UserError, match=message) as error:
        load_foreign("ffdnet", "a.tar", "f.npz")
    assert error.value.where == "a.tar:f.npz"


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("w/a.npz", ("w/a.npz", None)),
        ("w/a.tar:b/c.npz", ("w/a.tar", "b/c.npz")),
        ("C:w.pth", ("C:w.pth", None)),
    ],
)
def test_a_member_is_named_after_the_tar(text, parts):
    path, member = split_member(text)
    assert (str(path), member) == parts


def picture(name):
    members = scan_tar(SHARED / "dev_val.tar", samples=False)
    member = next(m for m in members if m.name.rsplit(".", 1)[0] == name)
    with fs.open_read(SHARED / "dev_val.tar") as file:
        data = fs.pread(file, member.size, member.offset)
    return images.read_picture(data, name=member.name).pixels


def gain(net, name):
    """PSNR of the estimate at sigma 25, uint8, in dB."""
    clean = picture(name)
    x = torch.from_numpy(clean).permute(2, 0, 1)[None].float() / 255
    noise = torch.randn(x.shape, generator=torch_generator(0, name, "noise"))
    with torch.no_grad():
        out = apply_padded(net, x + 25 / 255 * noise, torch.full((1,), 25 / 255))
    restored = (out[0].clamp(0, 1) * 255).round().permute(1, 2, 0).numpy()
    return -10 * np.log10(np.mean((restored - clean) ** 2) / 255**2)


@pytest.mark.skipif(not SHARED.is_dir(), reason="reference weights are not on this machine")
def test_ffdnet_reaches_its_published_quality_only_with_the_swap(monkeypatch):
    """The paper has 31.21 dB on all of CBSD68; these two images average 31.2 ± 0.3."""
    net = load_foreign("ffdnet", SHARED / "weights.tar", "FFDNet_color.npz")
    right = np.mean([gain(net, name) for name in NAMES])
    monkeypatch.setattr(foreign, "_COLUMN_MAJOR", (0, 1, 2, 3))
    net = load_foreign("ffdnet", SHARED / "weights.tar", "FFDNet_color.npz")
    wrong = np.mean([gain(net, name) for name in NAMES])
    assert abs(right - 31.2) < 0.3
    assert wrong < right - 1


def test_bsrt_weights_come_through_the_names_of_a_parallel_training(tmp_path):
    net = preset("tiny").eval()
    stored = {f"module.{name}": tensor for name, tensor in net.state_dict().items()}
    torch.save({"params": stored}, tmp_path / "bsrt.pth")
    found = load_foreign("bsrt", tmp_path / "bsrt.pth")
    assert all(torch.equal(t, found.state_dict()[k]) for k, t in net.state_dict().items())
    torch.save({"params": dict(list(stored.items())[1:])}, tmp_path / "part.pth")
    with pytest.raises(UserError, match="in a BSRT of its size"):
        load_foreign("bsrt", tmp_path / "part.pth")
