"""What each denoiser is, beyond the laws of all networks."""

import pytest
import torch

from lit_restore.errors import UserError
from lit_restore.networks import FFDNet, MIRNet, UNet


def size(net: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


@pytest.mark.parametrize(
    ("options", "parameters"),
    [
        ({}, 15_951_310),
        ({"in_channels": 3}, 15_950_734),
        ({"in_channels": 3, "msrbs": 2}, 31_787_419),
        ({"share_columns": False}, 15_951_310 + 3 * 1_741_974),
    ],
)
def test_mirnet_has_the_published_number_of_parameters(options, parameters):
    with torch.device("meta"):
        assert size(MIRNet(**options)) == parameters


def test_ffdnet_has_the_published_number_of_parameters():
    with torch.device("meta"):
        assert size(FFDNet()) == 852_108


def test_mirnet_columns_share_weights_only_when_told():
    shared = MIRNet(width=8, rrgs=1).groups[0].blocks[0]
    apart = MIRNet(width=8, rrgs=1, share_columns=False).groups[0].blocks[0]
    assert shared._column(0) is shared._column(1)
    assert apart._column(0) is not apart._column(1)


def test_mirnet_applies_each_attention_once_for_each_column():
    net = MIRNet(width=8, rrgs=1, columns=3)
    calls = []
    net.groups[0].blocks[0].attentions[0][0].register_forward_hook(lambda *_: calls.append(1))
    net(torch.rand(1, 3, 8, 8), torch.full((1,), 0.1))
    assert len(calls) == 3


def test_mirnet_residual_is_the_image_without_the_noise_map():
    net = MIRNet(width=8, rrgs=1)
    torch.nn.init.zeros_(net.exit.weight)
    x = torch.rand(2, 3, 8, 8)
    assert torch.equal(net(x, torch.tensor([0.1, 0.9])), x)


def test_blind_mirnet_ignores_sigma():
    net = MIRNet(width=8, rrgs=1, in_channels=3)
    x = torch.rand(1, 3, 8, 8)
    assert torch.equal(net(x), net(x, torch.tensor([0.5])))


def test_mirnet_refuses_other_input_channels():
    with pytest.raises(UserError, match=r"in_channels: 5 must be channels \(3\), or one more"):
        MIRNet(in_channels=5)


def test_ffdnet_needs_two_layers():
    with pytest.raises(UserError, match=r"^depth: 1 is below 2"):
        FFDNet(depth=1)


def test_unet_needs_a_depth_for_each_width():
    with pytest.raises(UserError, match=r"^depths: needs one entry for each of widths \(2\)"):
        UNet(widths=(8, 8), depths=(1,))


@pytest.mark.parametrize(
    ("build", "options", "where"),
    [
        (UNet, {"widths": ()}, "widths"),
        (UNet, {"widths": (8, -4)}, "widths"),
        (UNet, {"widths": None}, "widths"),
        (UNet, {"depths": (1, 0)}, "depths"),
        (UNet, {"depths": (1, True)}, "depths"),
        (UNet, {"depths": "11"}, "depths"),
        (UNet, {"unshuffle": 0}, "unshuffle"),
        (UNet, {"channels": -3}, "channels"),
        (FFDNet, {"width": 0}, "width"),
        (FFDNet, {"depth": -1}, "depth"),
        (MIRNet, {"streams": 0}, "streams"),
        (MIRNet, {"msrbs": 0}, "msrbs"),
        (MIRNet, {"rrgs": 1.5}, "rrgs"),
        (MIRNet, {"width": 8, "reduction": 16}, "reduction"),
    ],
)
def test_sizes_that_make_no_network_are_refused_by_name(build, options, where):
    with pytest.raises(UserError) as caught:
        build(**options)
    assert caught.value.where == where


def test_unet_starts_as_the_linear_estimate_for_white_images():
    """Zero-initialised: mean + std²/(std² + σ²)·(x - mean), so σ = 0 returns the image."""
    net = UNet(widths=(8,), depths=(1,))
    x = torch.rand(3, 3, 8, 8)
    out = net(x, torch.tensor([0.0, 0.25, 10.0]))
    assert torch.allclose(out[0], x[0], atol=1e-6)
    assert torch.allclose(out[1], 0.45 + (x[1] - 0.45) / 2, atol=1e-6)
    assert torch.allclose(out[2], torch.full_like(x[2], 0.45), atol=1e-3)
