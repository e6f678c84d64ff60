"""EDSR: its published sizes, and that it starts as, and learns a change of, bicubic enlargement."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lit_restore.errors import UserError
from lit_restore.networks import EDSR
from lit_restore.networks.edsr import ResidualBlock

SCALES = [1, 2, 3, 4, 8]
UPSAMPLERS = ["pixelshuffle", "pixelshuffledirect"]
every = pytest.mark.parametrize(
    ("scale", "upsampler"), [(scale, kind) for scale in SCALES for kind in UPSAMPLERS]
)


def made(scale: int, upsampler: str = "pixelshuffle", **options: Any) -> EDSR:
    """A small network, moved off its start."""
    net = EDSR(**{"width": 6, "depth": 2, **options}, scale=scale, upsampler=upsampler)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return net


def image(height: int = 12, width: int = 16, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(2, 3, height, width, generator=generator, dtype=dtype)


@every
def test_it_starts_as_bicubic_enlargement(scale: int, upsampler: str) -> None:
    net = EDSR(width=6, depth=1, scale=scale, upsampler=upsampler)
    wanted = F.interpolate(image(), scale_factor=scale, mode="bicubic") if scale > 1 else image()
    assert torch.equal(net(image()), wanted)


@every
@pytest.mark.parametrize(("height", "width"), [(1, 1), (5, 7)])
def test_any_size_is_enlarged_by_the_scale(
    scale: int, upsampler: str, height: int, width: int
) -> None:
    out = made(scale, upsampler)(image(height, width))
    assert out.shape == (2, 3, scale * height, scale * width)
    assert out.isfinite().all()


def test_its_layers_stand_as_in_the_paper() -> None:
    """Figure 3: a skip in every block, one around all of them, then the enlargement."""
    net, x = made(2, block_scale=0.1), image()
    entry = net.entry(x - 0.5)
    features = entry
    for block in net.blocks():
        assert isinstance(block, ResidualBlock)
        features = features + 0.1 * block.conv2(block.conv1(features).relu())
    enlarge = net.upsample[0]
    larger = F.pixel_shuffle(enlarge(net.fuse(features) + entry), 2)
    wanted = net.exit(larger) + F.interpolate(x, scale_factor=2, mode="bicubic")
    torch.testing.assert_close(net(x), wanted)


@pytest.mark.parametrize(("scale", "parameters"), [(2, 1_369_859), (3, 1_554_499), (4, 1_517_571)])
def test_the_default_has_the_published_size(scale: int, parameters: int) -> None:
    """EDSR-baseline: 16 blocks of 64 features; its fixed mean of the colours not counted."""
    with torch.device("meta"):
        assert sum(p.numel() for p in EDSR(scale=scale).parameters()) == parameters


@every
def test_the_size_follows_from_the_options(scale: int, upsampler: str) -> None:
    width, depth = 6, 3
    conv = 9 * width + 1  # weights and bias of one output channel
    total = (9 * 3 + 1) * width + (2 * depth + 1) * conv * width
    if upsampler == "pixelshuffledirect":
        total += conv * 3 * scale**2
    else:
        shuffles = {1: 0, 2: 4, 3: 9, 4: 8, 8: 12}[scale]
        total += conv * width * shuffles + conv * 3
    with torch.device("meta"):
        net = EDSR(width=width, depth=depth, scale=scale, upsampler=upsampler)
    assert sum(p.numel() for p in net.parameters()) == total


@pytest.mark.parametrize(("scale", "upsampler"), [(1, "pixelshuffle"), (3, "pixelshuffledirect"),
                                                  (4, "pixelshuffle")])  # fmt: skip
def test_a_shift_of_the_input_shifts_the_output_inside(scale: int, upsampler: str) -> None:
    """Convolutions look 1 + 2 · 2 + 1 pixels far, and at most 2 after them; bicubic 2."""
    net, x = made(scale, upsampler).double(), image(28, 30, torch.float64)
    whole, moved = net(x)[..., 3 * scale :, 5 * scale :], net(x[..., 3:, 5:])
    margin = 9 * scale
    inner = (..., slice(margin, None), slice(margin, None))
    torch.testing.assert_close(moved[inner], whole[inner], rtol=0, atol=1e-12)
    assert (moved - whole).abs().max() > 1e-6  # the edges are seen


@every
def test_every_parameter_has_a_finite_gradient(scale: int, upsampler: str) -> None:
    net = made(scale, upsampler)
    net(image()).square().sum().backward()
    bad = [
        name
        for name, p in net.named_parameters()
        if p.grad is None or not p.grad.isfinite().all() or not p.grad.any()
    ]
    assert bad == []


def test_options_rebuild_the_same_network() -> None:
    net = made(2, "pixelshuffledirect", block_scale=0.1)
    twin = EDSR(**json.loads(json.dumps(net.options)))
    twin.load_state_dict(net.state_dict(), strict=True)
    assert torch.equal(twin(image()), net(image()))
    assert len(twin.blocks()) == 2


def test_a_few_steps_lower_the_loss_of_an_image() -> None:
    torch.manual_seed(0)
    clean = image(32, 32)
    clean = F.avg_pool2d(clean, 5, stride=1, padding=2)
    degraded = F.avg_pool2d(clean, 2)
    net = EDSR(width=8, depth=1, scale=2)
    optimiser = torch.optim.Adam(net.parameters(), lr=1e-2)
    losses = []
    for _ in range(40):
        loss = F.mse_loss(net(degraded), clean)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize(
    ("options", "where"),
    [
        ({"scale": 5}, "scale"),
        ({"scale": 0}, "scale"),
        ({"width": -1}, "width"),
        ({"depth": 0}, "depth"),
        ({"upsampler": "bicubic"}, "upsampler"),
    ],
)
def test_options_that_make_no_network_are_refused_by_name(
    options: dict[str, Any], where: str
) -> None:
    with pytest.raises(UserError) as caught:
        EDSR(**options)
    assert caught.value.where == where
