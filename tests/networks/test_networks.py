"""Laws of every denoiser; a new entry is tested by being listed (and given a size)."""

import json

import pytest
import torch
from torch import nn

from lit_restore.networks import DENOISERS, Network, apply_padded

SMALL = {
    "UNet": {"widths": (8, 12), "depths": (1, 2)},
    "MIRNet": {"width": 8, "rrgs": 2, "reduction": 2},
    "FFDNet": {"width": 8, "depth": 4},
}
"""Options that make each network small enough for a test."""

every_network = pytest.mark.parametrize("name", sorted(DENOISERS))


def small(name: str) -> Network:
    """A small network whose zero-initialised layers are moved off zero."""
    net = DENOISERS[name](**SMALL[name])
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return net


def noisy(*shape: int, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(shape, generator=generator, dtype=dtype)
    return x, torch.linspace(0.05, 0.5, shape[0], dtype=dtype)


@every_network
def test_output_has_input_shape_and_every_parameter_a_finite_gradient(name):
    net = small(name)
    x, sigma = noisy(2, 3, 2 * net.multiple, 3 * net.multiple)
    x.requires_grad_()
    out = net(x, sigma)
    out.square().sum().backward()
    assert out.shape == x.shape
    gradients = {key: p.grad for key, p in net.named_parameters()}
    assert [k for k, g in gradients.items() if g is None or not g.isfinite().all()] == []
    assert [k for k, g in gradients.items() if not g.any()] == []
    assert x.grad.isfinite().all()
    assert x.grad.any()


@every_network
def test_output_depends_on_the_noise_level_of_its_own_image_only(name):
    net = small(name).double()
    x, sigma = noisy(2, 3, net.multiple * 2, net.multiple * 2, dtype=torch.float64)
    changed = net(x, sigma + torch.tensor([0.1, 0.0], dtype=torch.float64)) - net(x, sigma)
    assert changed[0].abs().max() > 1e-6
    assert changed[1].abs().max() < 1e-12


@every_network
def test_options_rebuild_the_same_state_dict(name):
    net = small(name)
    options = json.loads(json.dumps(net.options))
    twin = type(net)(**options)
    assert twin.options == net.options
    assert set(SMALL[name]) < set(options), "defaults are recorded too"
    twin.load_state_dict(net.state_dict(), strict=True)
    x, sigma = noisy(1, 3, 16, 16)
    assert torch.equal(twin(x, sigma), net(x, sigma))


@every_network
def test_state_dict_names_each_parameter_once(name):
    net = small(name)
    names = set(net.state_dict())
    assert names == {key for key, _ in net.named_parameters()} | {k for k, _ in net.named_buffers()}
    assert sum(p.numel() for p in net.parameters()) == sum(
        p.numel() for key, p in net.state_dict().items() if key in dict(net.named_parameters())
    )


@every_network
def test_apply_padded_is_the_net_itself_on_multiples(name):
    net = small(name)
    x, sigma = noisy(2, 3, 2 * net.multiple, 3 * net.multiple)
    assert torch.equal(apply_padded(net, x, sigma), net(x, sigma))


@every_network
def test_apply_padded_crops_the_output_of_the_reflected_image(name):
    net = small(name).double()
    m = net.multiple
    x, sigma = noisy(1, 3, 3 * m - 1, 4 * m - (m - 1), dtype=torch.float64)
    padded = nn.functional.pad(x, (0, m - 1, 0, 1), mode="reflect")
    expected = net(padded, sigma)[..., : x.shape[2], : x.shape[3]]
    assert torch.equal(apply_padded(net, x, sigma), expected)


@every_network
@pytest.mark.parametrize("size", [(1, 1), (2, 3), (3, 1)])
def test_apply_padded_takes_images_smaller_than_the_padding(name, size):
    net = small(name)
    x, sigma = noisy(1, 3, *size)
    out = apply_padded(net, x, sigma)
    assert out.shape == x.shape
    assert out.isfinite().all()


@every_network
def test_float64_agrees_with_float32(name):
    net = small(name)
    x, sigma = noisy(1, 3, 16, 16)
    single = net(x, sigma)
    double = net.double()(x.double(), sigma.double())
    assert double.dtype is torch.float64
    assert (double - single).abs().max() < 1e-4 * double.abs().max()


@every_network
def test_blocks_are_distinct_modules_of_the_net(name):
    net = small(name)
    blocks = net.blocks()
    assert blocks
    assert len({id(block) for block in blocks}) == len(blocks)
    assert all(any(block is module for module in net.modules()) for block in blocks)


@every_network
def test_memory_format_changes_nothing(name):
    net = small(name).double()
    x, sigma = noisy(2, 3, 16, 16, dtype=torch.float64)
    plain = net(x, sigma)
    net.to(memory_format=torch.channels_last)
    assert (net(x.to(memory_format=torch.channels_last), sigma) - plain).abs().max() < 1e-10
