"""Fusions: laws of each in the list, the paper's sizes, and averages that can be done by hand."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lit_restore.errors import UserError
from lit_restore.networks import FUSIONS, FusionNet, Network, TimeAverage, WaveletAverage
from lit_restore.networks.fusion import DenseBlock, haar_merge, haar_split

SMALL: dict[str, dict[str, Any]] = {
    "FusionNet": {"width": 6, "num_convs": 3, "growth": 4, "time_dim": 8, "time_hidden": 5},
    "TimeAverage": {"time_dim": 8, "time_hidden": 5},
    "WaveletAverage": {"levels": 2},
}
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in FUSIONS),
    ("FusionNet", {"share_encoder": False}),
    ("FusionNet", {"unshuffle": 2}),
    ("FusionNet", {"residual": "average", "decoder_blocks": 1}),
]
ALWAYS = 200.0
"""Its sigmoid is 1 in float32, and that of its negative 0."""

every = pytest.mark.parametrize(("name", "options"), VARIANTS, ids=str)


def made(name: str, **options: Any) -> Network:
    """A small network, moved off whatever it starts as."""
    net = FUSIONS[name](**{**SMALL[name], **options})
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return net


def inputs(
    count: int = 2, height: int = 16, width: int = 24, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    both = torch.rand(2, count, 3, height, width, generator=generator, dtype=dtype)
    return both[0], both[1], torch.arange(5, 5 + 100 * count, 100)


def size(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


# Laws of all --------------------------------------------------------------------------------------


@every
def test_every_parameter_and_both_images_have_a_finite_gradient(
    name: str, options: dict[str, Any]
) -> None:
    net = made(name, **options)
    restored, denoised, t = inputs()
    restored.requires_grad_()
    denoised.requires_grad_()
    net(restored, denoised, t).square().sum().backward()
    found = {key: p.grad for key, p in net.named_parameters()}
    found |= {"restored": restored.grad, "denoised": denoised.grad}
    assert [k for k, g in found.items() if g is None or not g.isfinite().all() or not g.any()] == []


@every
@pytest.mark.parametrize(("height", "width"), [(1, 1), (7, 5), (9, 16)])
def test_images_of_any_size_go_through(
    name: str, options: dict[str, Any], height: int, width: int
) -> None:
    restored, denoised, t = inputs(1, height, width)
    out = made(name, **options)(restored, denoised, t)
    assert out.shape == restored.shape
    assert out.isfinite().all()


@every
def test_an_image_depends_on_itself_and_its_time_alone(name: str, options: dict[str, Any]) -> None:
    net = made(name, **options).double()
    restored, denoised, t = inputs(3, dtype=torch.float64)
    whole = net(restored, denoised, t)
    alone = net(restored[1:2], denoised[1:2], t[1:2])
    torch.testing.assert_close(whole[1:2], alone, rtol=0, atol=1e-12)
    later = net(restored, denoised, t + torch.tensor([40, 0, 0])) - whole
    assert later[1:].abs().max() < 1e-12
    assert (later[0].abs().max() > 1e-6) == (name != "WaveletAverage")


@every
def test_options_rebuild_the_same_network(name: str, options: dict[str, Any]) -> None:
    net = made(name, **options)
    twin = type(net)(**json.loads(json.dumps(net.options)))
    twin.load_state_dict(net.state_dict(), strict=True)
    assert torch.equal(twin(*inputs()), net(*inputs()))


@every
def test_blocks_are_the_dense_ones(name: str, options: dict[str, Any]) -> None:
    net = made(name, **options)
    blocks = net.blocks()
    assert len({id(block) for block in blocks}) == len(blocks)
    wanted = {"share_encoder": 4, "residual": 2}.get(next(iter(options), ""), 3)
    assert len(blocks) == (wanted if name == "FusionNet" else 0)


# The paper's network ------------------------------------------------------------------------------


def test_the_default_has_the_published_size_part_by_part() -> None:
    """0.73 M (section 4.1): three dense blocks, conv in and out, and the time's two layers."""
    with torch.device("meta"):
        net = FusionNet()
    assert [size(block) for block in net.blocks()] == [239_808] * 3
    encoder = net.encoders[0]
    assert isinstance(encoder, nn.Sequential)
    assert [size(encoder[0]), size(net.exit), size(net.weights)] == [1_792, 1_731, 8_320]
    assert size(net) == 731_267
    with torch.device("meta"):
        assert size(FusionNet(share_encoder=False)) == 731_267 + 239_808 + 1_792


def test_a_dense_block_sees_all_before_it_and_adds_a_scaled_change() -> None:
    block = DenseBlock(4, 3, 2, 0.2)
    x = torch.rand(1, 4, 6, 6)
    first = block.convs[0](x).relu()
    second = block.convs[1](torch.cat([x, first], 1)).relu()
    change = block.convs[2](torch.cat([x, first, second], 1))
    torch.testing.assert_close(block(x), x + 0.2 * change)


@pytest.mark.parametrize("share", [True, False])
def test_exchanging_the_images_and_the_weights_changes_nothing_where_they_share_an_encoder(
    share: bool,
) -> None:
    net = made("FusionNet", share_encoder=share).double()
    assert isinstance(net, FusionNet)
    restored, denoised, t = inputs(dtype=torch.float64)
    before = net(restored, denoised, t)
    exchange_weights(net.weights)
    exchanged = net(denoised, restored, t)
    if not share:
        assert (exchanged - before).abs().max() > 1e-3
        net.encoders = nn.ModuleList([net.encoders[1], net.encoders[0]])
        exchanged = net(denoised, restored, t)
    torch.testing.assert_close(exchanged, before, rtol=0, atol=1e-12)


@torch.no_grad()
def exchange_weights(branch: nn.Sequential) -> None:
    """W to 1 - w, at every time."""
    for parameter in branch[-1].parameters():
        parameter.neg_()


@pytest.mark.parametrize(("sign", "kept"), [(1, 0), (-1, 1)])
@torch.no_grad()
def test_a_constant_weight_of_0_or_1_leaves_one_of_the_images(sign: int, kept: int) -> None:
    """1 is the restored image's, 0 the denoised one's: the convention of our checkpoints."""
    net = made("FusionNet", share_encoder=False)
    assert isinstance(net, FusionNet)
    constant(net.weights, sign * ALWAYS)
    *images, t = inputs()
    before = net(*images, t)
    images[1 - kept] = torch.rand_like(images[0])
    assert torch.equal(net(*images, t), before)
    images[kept] = torch.rand_like(images[0])
    assert not torch.equal(net(*images, t), before)


@torch.no_grad()
def constant(branch: nn.Sequential, value: float) -> None:
    """Let a time branch give one value before its sigmoid."""
    last = branch[-1]
    assert isinstance(last, nn.Linear)
    last.weight.zero_()
    last.bias.fill_(value)


def test_a_residual_of_the_average_starts_as_exactly_that() -> None:
    net = FusionNet(**{**SMALL["FusionNet"], "residual": "average", "unshuffle": 2})
    assert net.average is not None
    restored, denoised, t = inputs(2, 9, 11)
    out = net(restored, denoised, t)
    assert torch.equal(out, net.average(restored, denoised, t))
    assert ((out - restored) * (out - denoised) <= 0).all()  # between the two everywhere


def test_unshuffling_is_a_network_of_the_pixels_of_blocks() -> None:
    """What the convolutions see, and that edges are repeated where a block is not whole."""
    net = made("FusionNet", unshuffle=2)
    assert isinstance(net, FusionNet)
    seen: list[Tensor] = []
    net.encoders[0].register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    restored, denoised, t = inputs(1, 5, 6)
    out = net(restored, denoised, t)
    padded = [torch.cat([x, x[..., -1:, :]], dim=-2) for x in (restored, denoised)]
    assert torch.equal(seen[0], nn.functional.pixel_unshuffle(padded[0], 2))
    assert seen[1].shape == (1, 12, 3, 3)
    assert torch.equal(net(*padded, t)[..., :5, :], out)


# Averages -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["TimeAverage", "WaveletAverage"])
def test_of_two_equal_images_the_average_is_that_image(name: str) -> None:
    image, _, t = inputs(2, 13, 10)
    torch.testing.assert_close(made(name)(image, image, t), image)


@pytest.mark.parametrize(("sign", "kept"), [(1, 0), (-1, 1)])
@torch.no_grad()
def test_constant_weights_give_one_of_the_two_images(sign: int, kept: int) -> None:
    *images, t = inputs(2, 13, 10)
    average, wavelets = TimeAverage(), WaveletAverage()
    constant(average.weights, sign * ALWAYS)
    assert torch.equal(average(*images, t), images[kept])
    for parameter in wavelets.parameters():
        parameter.fill_(sign * ALWAYS)
    torch.testing.assert_close(wavelets(*images, t), images[kept])


@torch.no_grad()
def test_the_weights_of_a_time_average_are_of_the_channel_and_the_time() -> None:
    net = made("TimeAverage")
    restored, denoised, t = inputs()
    w = (net(restored, denoised, t) - denoised) / (restored - denoised)
    middle = w.flatten(2).median(dim=2).values
    far = (restored - denoised).abs() > 0.05  # elsewhere the quotient is rounding
    assert ((w - middle[..., None, None]).abs()[far]).max() < 1e-4
    assert len({round(float(v), 3) for v in middle.flatten()}) == 6
    assert ((middle > 0) & (middle < 1)).all()


def test_wavelets_have_30_weights_and_start_as_the_mean() -> None:
    """Table 5's L-DWT: three levels of three bands and a mean, of three channels."""
    net = WaveletAverage()
    assert size(net) == 30
    restored, denoised, t = inputs()
    torch.testing.assert_close(net(restored, denoised, t), (restored + denoised) / 2)


@torch.no_grad()
def test_each_band_has_its_own_weight() -> None:
    net = WaveletAverage(levels=2)
    restored, denoised, t = inputs()
    for parameter in net.parameters():
        parameter.fill_(-ALWAYS)
    net.mean.fill_(ALWAYS)
    change = net(restored, denoised, t) - denoised
    means = nn.functional.avg_pool2d(restored - denoised, 4).repeat_interleave(4, -1)
    torch.testing.assert_close(change, means.repeat_interleave(4, -2))
    net.mean.fill_(-ALWAYS)
    net.details[0, 1, 2] = ALWAYS  # the finest diagonal band of green
    change = net(restored, denoised, t) - denoised
    pixels = nn.functional.pixel_unshuffle((restored - denoised)[:, 1:2], 2)
    diagonal = (pixels * torch.tensor([1, -1, -1, 1]).view(1, 4, 1, 1)).sum(1, keepdim=True) / 4
    wanted = nn.functional.pixel_shuffle(
        diagonal * torch.tensor([1, -1, -1, 1]).view(1, 4, 1, 1), 2
    )
    torch.testing.assert_close(change[:, 1:2], wanted)
    assert not change[:, [0, 2]].any()


def test_haar_is_orthonormal_and_its_own_inverse() -> None:
    x = torch.randn(2, 3, 6, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    bands = haar_split(x)
    assert bands.shape == (2, 3, 4, 3, 5)
    torch.testing.assert_close(haar_merge(bands), x)
    torch.testing.assert_close(bands.square().sum(), x.square().sum())
    flat = haar_split(torch.ones(1, 1, 4, 4))
    assert (flat[:, :, 0] == 2).all()
    assert not flat[:, :, 1:].any()


@pytest.mark.parametrize(
    ("build", "options", "where"),
    [
        (FusionNet, {"width": 0}, "width"),
        (FusionNet, {"num_convs": -1}, "num_convs"),
        (FusionNet, {"unshuffle": 0}, "unshuffle"),
        (FusionNet, {"time_dim": 7}, "time_dim"),
        (FusionNet, {"residual": "both"}, "residual"),
        (TimeAverage, {"time_dim": 3}, "time_dim"),
        (TimeAverage, {"time_hidden": 0}, "time_hidden"),
        (WaveletAverage, {"levels": 0}, "levels"),
        (WaveletAverage, {"channels": 1.5}, "channels"),
    ],
)
def test_options_that_make_no_network_are_refused_by_name(
    build: type[Network], options: dict[str, Any], where: str
) -> None:
    with pytest.raises(UserError) as caught:
        build(**options)
    assert caught.value.where == where
