"""What BSRT is: its size, its names, and which frames and pixels its output depends on."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lit_restore.errors import UserError
from lit_restore.networks.bsrt import BSRT, bsrt_from_official, preset

SMALL: dict[str, Any] = {
    "frames": 3, "width": 8, "embed": 12, "entry_depth": 2, "depths": (2,), "heads": 2,
    "groups": 2, "drop_path": 0.0,
}  # fmt: skip


def small(seed: int = 0, **changes: Any) -> BSRT:
    """A small network off its neutral start, its flows of a few pixels."""
    torch.manual_seed(seed)
    net = BSRT(**{**SMALL, **changes})
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
            if name.startswith("spynet"):
                parameter.mul_(0.5)
    return net


def burst(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("name", "parameters", "blocks"), [("small", 4_915_665, 30), ("large", 20_713_905, 54)]
)
def test_bsrt_has_the_published_number_of_parameters(
    name: str, parameters: int, blocks: int
) -> None:
    with torch.device("meta"):
        net = preset(name)
    assert sum(p.numel() for p in net.parameters()) == parameters
    assert len(net.blocks()) == blocks


def published_names(entry_depth: int, depths: list[int]) -> set[str]:
    """The published state dict's names without the index buffers, written out."""
    swin = ["norm1", "norm2", "attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"]
    stems = [f"pre_layers.{k}" for k in range(entry_depth)]
    layers = [f"spynet.basic_module.{k}.basic_module.{j}" for k in range(6) for j in range(0, 9, 2)]
    for i, depth in enumerate(depths):
        stems += [f"layers.{i}.residual_group.blocks.{k}" for k in range(depth)]
        layers.append(f"layers.{i}.conv")
    layers += [f"{stem}.{part}" for stem in stems for part in swin]
    layers += ["patch_embed.norm", "pre_norm", "norm"]
    layers += [
        "conv_flow", "conv_first", "conv_after_pre_layer", "fea_L2_conv1", "fea_L3_conv1",
        "toplayer", "smooth1", "smooth2", "latlayer1", "latlayer2", "fusion", "conv_after_body",
        "upconv1", "upconv2", "HRconv", "conv_last", "skipup1", "skipup2",
    ]  # fmt: skip
    layers += [
        f"align.{level}_{part}"
        for level, parts in {
            "L3": ["offset_conv1", "offset_conv2", "dcnpack", "dcnpack.conv_offset_mask"],
            "L2": ["offset_conv1", "offset_conv2", "offset_conv3", "dcnpack",
                   "dcnpack.conv_offset_mask", "fea_conv"],
            "L1": ["offset_conv1", "offset_conv2", "offset_conv3", "dcnpack",
                   "dcnpack.conv_offset_mask", "fea_conv"],
            "cas": ["offset_conv1", "offset_conv2", "dcnpack", "dcnpack.conv_offset_mask"],
        }.items()
        for part in parts
    ]  # fmt: skip
    names = {f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")}
    names |= {f"{stem}.attn.relative_position_bias_table" for stem in stems}
    return names | {"spynet.mean", "spynet.std"}


def test_the_state_dict_has_the_published_names_and_shapes() -> None:
    with torch.device("meta"):
        state = preset("small").state_dict()
    assert set(state) == published_names(6, [6, 6, 6, 6])
    assert state["align.L1_dcnpack.weight"].shape == (64, 64, 3, 3)
    assert state["align.L1_dcnpack.conv_offset_mask.weight"].shape == (8 * 27, 64, 3, 3)
    assert state["fusion.weight"].shape == (60, 14 * 64, 1, 1)
    assert state["pre_layers.0.attn.relative_position_bias_table"].shape == (225, 6)
    assert state["spynet.mean"].shape == (1, 3, 1, 1)


def as_published(net: BSRT) -> dict[str, Tensor]:
    """As a file of several GPUs holds it: prefixed, and with the index buffers."""
    index = torch.zeros(64, 64, dtype=torch.long)
    state = dict(net.state_dict())
    for name in net.state_dict():
        if name.endswith("relative_position_bias_table"):
            state[name.replace("bias_table", "index")] = index
    return {f"module.{name}": tensor for name, tensor in state.items()}


def test_published_weights_make_a_network_of_their_size() -> None:
    net = small(depths=(2, 4), mlp_ratio=3).eval()
    loaded = bsrt_from_official(as_published(net))
    assert loaded.options | {"drop_path": 0.0} == net.options
    x = burst(1, 3, 4, 8, 8)
    with torch.no_grad():
        assert torch.equal(loaded(x), net(x))


def test_other_weights_are_refused() -> None:
    state = as_published(small())
    with pytest.raises(UserError, match=r"^a.pth: is no BSRT .*conv_first.weight"):
        bsrt_from_official({"conv.weight": torch.zeros(3)}, where="a.pth")
    extra = state | {"module.fusion.non_local_T.0.g.weight": torch.zeros(3)}
    with pytest.raises(UserError, match=r"fusion.non_local_T.0.g.weight is \(3,\) in the file and"):
        bsrt_from_official(extra)
    del state["module.norm.weight"]
    with pytest.raises(UserError, match=r"norm.weight is missing in the file and \(12,\) in a"):
        bsrt_from_official(state)


def test_output_is_eight_times_as_large_and_every_parameter_has_a_gradient() -> None:
    net = small()
    x = burst(2, 3, 4, 8, 16).requires_grad_()
    out = net(x)
    out.square().sum().backward()
    assert out.shape == (2, 3, 64, 128)
    gradients = {name: p.grad for name, p in net.named_parameters()}
    assert [k for k, g in gradients.items() if g is None or not g.isfinite().all()] == []
    assert [k for k, g in gradients.items() if not g.any()] == []
    assert x.grad is not None
    assert x.grad.flatten(2).any(-1).all(), "every frame counts"


def test_options_rebuild_the_same_network() -> None:
    net = small().eval()
    twin = BSRT(**json.loads(json.dumps(net.options))).eval()
    twin.load_state_dict(net.state_dict(), strict=True)
    x = burst(1, 3, 4, 8, 8)
    with torch.no_grad():
        assert torch.equal(twin(x), net(x))


@torch.no_grad()
def test_bursts_of_a_batch_do_not_see_each_other() -> None:
    net = small().double()
    x = burst(2, 3, 4, 8, 8).double()
    assert (net(x)[1:] - net(x[1:])).abs().max() < 1e-12


@torch.no_grad()
def test_frames_change_places_together_with_their_fusion_weights() -> None:
    net, twin = small().double(), small().double()
    x = burst(1, 3, 4, 8, 8).double()
    fusion = twin.fusion.weight.view(12, 3, 8)
    fusion.copy_(fusion[:, [0, 2, 1]].clone())
    assert (twin(x[:, [0, 2, 1]]) - net(x)).abs().max() < 1e-12
    assert (net(x[:, [0, 2, 1]]) - net(x)).abs().max() > 1e-6


@torch.no_grad()
def test_other_sizes_are_reflected_and_cropped() -> None:
    net = small().double()
    x = burst(1, 3, 4, 7, 11).double()
    padded = nn.functional.pad(x, (0, 5, 0, 1, 0, 0), mode="reflect")
    assert torch.equal(net(x), net(padded)[..., :56, :88])
    assert net(x[..., :1, :2]).shape == (1, 3, 8, 16)


@torch.no_grad()
def test_precisions_agree() -> None:
    net = small()
    x = burst(1, 3, 4, 16, 16)
    single = net(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = net(x)
        assert {flow.dtype for flow in net._flows(nn.functional.pixel_shuffle(x, 2))} == {
            torch.float32
        }
    assert (mixed - single).abs().max() < 0.03 * single.abs().max()
    double = net.double()(x.double())
    assert double.dtype == torch.float64
    assert (double - single).abs().max() < 1e-4 * double.abs().max()


def test_branches_are_dropped_in_training_only() -> None:
    net = small(drop_path=0.9)
    rates = [block.drop for block in net.blocks()]
    assert rates == pytest.approx([0.0, 0.3, 0.6, 0.9])
    x = burst(1, 3, 4, 8, 8)
    torch.manual_seed(0)
    with torch.no_grad():
        assert not torch.equal(net(x), net(x))
        net.eval()
        assert torch.equal(net(x), net(x))


@pytest.mark.parametrize("shape", [(1, 2, 4, 8, 8), (1, 3, 3, 8, 8), (3, 4, 8, 8)])
def test_other_bursts_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match=r"^burst: expects bursts \(B, 3, 4, h, w\), got"):
        small()(torch.zeros(shape))


@pytest.mark.parametrize(
    ("options", "where"),
    [
        ({"frames": 0}, "frames"),
        ({"depths": ()}, "depths"),
        ({"embed": 64}, "embed"),
        ({"width": 60}, "width"),
        ({"window": 7}, "window"),
        ({"drop_path": 1.0}, "drop_path"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict[str, Any], where: str) -> None:
    with pytest.raises(UserError, match=rf"^{where}: "), torch.device("meta"):
        BSRT(**options)


def test_unknown_presets_are_refused() -> None:
    with pytest.raises(UserError, match="known are small, large, tiny"):
        preset("huge")
