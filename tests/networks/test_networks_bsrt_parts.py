"""The parts of BSRT against what they are by definition: flow, windows, deformable convolution."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from lit_restore.networks.bsrt.alignment import DeformableConv
from lit_restore.networks.bsrt.flow import SpyNet, _resized, warp
from lit_restore.networks.bsrt.swin import (
    SwinBlock,
    WindowAttention,
    joined,
    relative_positions,
    shift_mask,
    windows,
)


def rand(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(shape, generator=generator, dtype=torch.float64)


def test_a_whole_flow_fetches_from_where_it_points() -> None:
    x = rand(2, 3, 6, 7)
    flow = torch.tensor([2.0, -1.0]).view(1, 2, 1, 1).expand(2, 2, 6, 7)
    moved = warp(x, flow)
    assert torch.allclose(moved[:, :, 1:, :5], x[:, :, :5, 2:], atol=1e-12)
    assert moved[:, :, 0].abs().max() < 1e-12
    bordered = warp(x, flow, beyond="border")
    assert torch.allclose(bordered[:, :, 1:, 5:], x[:, :, :5, 6:].expand(-1, -1, -1, 2), atol=1e-12)


def test_flows_start_at_zero_and_have_the_sizes_of_three_levels() -> None:
    net = SpyNet().double()
    flows = net(rand(2, 3, 20, 44), rand(2, 3, 20, 44, seed=1))
    assert [flow.shape for flow in flows] == [(2, 2, 20, 44), (2, 2, 10, 22), (2, 2, 5, 11)]
    assert not any(flow.any() for flow in flows)


def test_each_step_corrects_the_doubled_flow_of_the_one_before() -> None:
    # With constant corrections c at every level the flow at level k is (2^(k+1) - 1) c.
    net = SpyNet().double()
    with torch.no_grad():
        for step in net.basic_module:
            step.basic_module[-1].bias.copy_(torch.tensor([0.25, -0.5]))
    flows = net(rand(1, 3, 32, 64), rand(1, 3, 32, 64, seed=1))
    for level, flow in zip((5, 4, 3), flows, strict=True):
        expected = (2 ** (level + 1) - 1) * torch.tensor([0.25, -0.5]).double()
        assert torch.allclose(flow, expected.view(1, 2, 1, 1).expand_as(flow), atol=1e-10)


def test_a_flow_at_another_size_is_in_pixels_of_that_size() -> None:
    flow = torch.tensor([4.0, 6.0]).view(1, 2, 1, 1).expand(1, 2, 8, 16)
    smaller = _resized(flow, (4, 4))
    assert torch.equal(smaller, torch.tensor([1.0, 3.0]).view(1, 2, 1, 1).expand(1, 2, 4, 4))


def test_windows_are_joined_to_what_they_were_cut_from() -> None:
    x = rand(2, 8, 12, 3)
    assert torch.equal(joined(windows(x, 4), 4, (8, 12)), x)
    assert torch.equal(windows(x, 4)[1].view(4, 4, 3), x[0, :4, 4:8])


def test_relative_positions_number_the_displacements() -> None:
    index = relative_positions(3)
    places = [(i, j) for i in range(3) for j in range(3)]
    seen: dict[tuple[int, int], int] = {}
    for a, p in enumerate(places):
        for b, q in enumerate(places):
            number = seen.setdefault((p[0] - q[0], p[1] - q[1]), int(index[a, b]))
            assert number == index[a, b]
    assert sorted(seen.values()) == list(range(25))
    assert seen[0, 0] == 12
    assert seen[0, 1] == 13
    assert seen[1, 0] == 17


def test_attention_is_softmax_of_products_and_biases() -> None:
    net = WindowAttention(width=6, heads=2, window=2).double()
    x = rand(3, 4, 6)
    q, k, v = (p.view(3, 4, 2, 3).transpose(1, 2) for p in net.qkv(x).split(6, dim=-1))
    bias = net.relative_position_bias_table[relative_positions(2)].permute(2, 0, 1)
    weights = (q @ k.transpose(2, 3) / 3**0.5 + bias).softmax(-1)
    expected = net.proj((weights @ v).transpose(1, 2).reshape(3, 4, 6))
    assert (net(x, None) - expected).abs().max() < 1e-12


def test_shifted_windows_never_wrap_around() -> None:
    # A rolled pixel i was i + shift; windows then start at shift, and the first and last are cut.
    for height, width in ((8, 8), (16, 24)):
        shift, window = 4, 8
        mask = shift_mask((height, width), window, shift, torch.zeros(()))
        rows = (torch.arange(height).roll(-shift) - shift).div(window, rounding_mode="floor")
        columns = (torch.arange(width).roll(-shift) - shift).div(window, rounding_mode="floor")
        cell = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=-1)
        inside = windows(cell[None], window)
        together = (inside[:, :, None] == inside[:, None]).all(-1)
        assert torch.equal(mask == 0, together)
        assert (mask[~together] == -100).all()


def test_a_shifted_block_sees_its_own_window_only() -> None:
    block = SwinBlock(4, 2, window=4, shift=2, mlp_ratio=2, drop=0.0).double()
    x = rand(1, 8, 8, 4).requires_grad_()
    block(x)[0, 0, 0].sum().backward()
    assert x.grad is not None
    reached = (x.grad[0].abs().sum(-1) > 1e-12).nonzero()
    assert reached.max(dim=0).values.tolist() == [1, 1]


def test_with_untrained_offsets_a_frame_is_convolved_where_it_lies() -> None:
    net = DeformableConv(4, groups=2).double()
    x, guide, still = rand(1, 4, 6, 6), rand(1, 4, 6, 6, seed=1), torch.zeros(1, 2, 6, 6)
    half = F.conv2d(x, net.weight / 2, net.bias, padding=1)
    assert (net(x, guide, still) - half).abs().max() < 1e-12
    assert (net(x, guide) - half).abs().max() < 1e-12


def test_with_untrained_offsets_the_flow_says_where_to_convolve() -> None:
    net = DeformableConv(4, groups=2).double()
    x = rand(1, 4, 8, 8)
    flow = torch.tensor([1.0, -2.0]).view(1, 2, 1, 1).expand(1, 2, 8, 8)
    moved = net(x, rand(1, 4, 8, 8, seed=1), flow)
    expected = F.conv2d(warp(x, flow), net.weight / 2, net.bias, padding=1)
    inner = (slice(None), slice(None), slice(3, 7), slice(1, 6))
    assert (moved[inner] - expected[inner]).abs().max() < 1e-12


def deformed_by_definition(net: DeformableConv, x: Tensor, guide: Tensor, flow: Tensor) -> Tensor:
    """The sum over groups and taps, each tap fetched by `warp`."""
    batch, channels, height, width = x.shape
    raw = net.conv_offset_mask(guide)
    offsets = raw[:, : net.groups * 18].view(batch, net.groups, 9, 2, height, width)
    masks = raw[:, net.groups * 18 :].view(batch, net.groups, 9, 1, height, width).sigmoid()
    each = channels // net.groups
    out = net.bias.view(1, -1, 1, 1)
    for g in range(net.groups):
        mine = slice(g * each, (g + 1) * each)
        for tap in range(9):
            place = torch.tensor([tap % 3 - 1.0, tap // 3 - 1.0]).double().view(1, 2, 1, 1)
            where = place + flow + 10 * offsets[:, g, tap].flip(1).tanh()
            seen = warp(x[:, mine], where) * masks[:, g, tap]
            kernel = net.weight[:, mine, tap // 3, tap % 3]
            out = out + torch.einsum("oc,bchw->bohw", kernel, seen)
    return out


def test_deformable_convolution_is_its_definition() -> None:
    torch.manual_seed(0)
    net = DeformableConv(4, groups=2).double()
    with torch.no_grad():
        net.conv_offset_mask.weight.normal_(std=0.1)
        net.bias.normal_()
        x, guide = rand(2, 4, 7, 9), rand(2, 4, 7, 9, seed=1)
        flow = 4 * rand(2, 2, 7, 9, seed=2) - 2
        expected = deformed_by_definition(net, x, guide, flow)
        assert (net(x, guide, flow) - expected).abs().max() < 1e-10
