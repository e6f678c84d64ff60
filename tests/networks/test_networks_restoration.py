"""One wrapper for all restoration networks: any size, its channels, its precision, frozen."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lit_restore.errors import UserError
from lit_restore.networks.restoration import RestorationNetwork


class Picky(nn.Module):
    """Refuses sizes it cannot take; enlarges by repeating pixels, times a learned factor."""

    def __init__(self, multiple: int = 1, minimum: int = 1, scale: int = 1) -> None:
        super().__init__()
        self.multiple, self.minimum, self.scale = multiple, minimum, scale
        self.factor = nn.Parameter(torch.ones(()))
        self.seen: list[tuple[int, ...]] = []
        self.types: list[torch.dtype] = []

    def forward(self, x: Tensor) -> Tensor:
        assert all(n % self.multiple == 0 and n >= self.minimum for n in x.shape[-2:])
        self.seen.append(tuple(x.shape))
        self.types.append((x.flatten(1) @ x.flatten(1).T).dtype)
        out = self.factor * x
        return out.repeat_interleave(self.scale, -1).repeat_interleave(self.scale, -2)


def images(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("size", [(7, 5), (1, 1), (8, 16), (17, 31)])
@pytest.mark.parametrize("scale", [1, 2])
def test_any_size_gives_the_enlarged_size_and_the_image_in_its_place(
    size: tuple[int, int], scale: int
) -> None:
    wrapped = RestorationNetwork(Picky(8, 16, scale), name="N", scale=scale, multiple=8, minimum=12)
    x = images(2, 3, *size)
    assert torch.equal(wrapped(x), x.repeat_interleave(scale, -1).repeat_interleave(scale, -2))


def test_padding_is_by_reflection_and_only_where_it_is_needed() -> None:
    class Last(Picky):
        def forward(self, x: Tensor) -> Tensor:
            self.padded = x
            return super().forward(x)

    net = Last(4)
    wrapped = RestorationNetwork(net, name="N", multiple=4)
    x = images(1, 3, 6, 8)
    wrapped(x)
    assert net.padded.shape == (1, 3, 8, 8)
    assert torch.equal(net.padded[..., 6:, :], x[..., [4, 3], :])
    wrapped(images(1, 3, 8, 8))
    assert net.seen[-1] == (1, 3, 8, 8)


def test_a_network_of_squares_is_given_squares() -> None:
    net = Picky(4)
    RestorationNetwork(net, name="N", multiple=4, square=True)(images(1, 3, 9, 17))
    assert net.seen == [(1, 3, 20, 20)]


def test_tiles_bound_what_goes_through_at_once_and_change_nothing_local() -> None:
    net = Picky(8, 8, 2)
    wrapped = RestorationNetwork(net, name="N", scale=2, multiple=8, tile=30, overlap=10)
    x = images(1, 3, 70, 41)
    out = wrapped(x)
    assert torch.allclose(out, x.repeat_interleave(2, -1).repeat_interleave(2, -2))
    assert set(net.seen) == {(1, 3, 32, 32)}
    with pytest.raises(UserError, match=r"tile: 16 is too small for N with an overlap of 32"):
        wrapped.set_tile(16)


def test_channels_that_do_not_fit_are_named_and_gray_is_repeated_on_request() -> None:
    with pytest.raises(UserError, match="N: takes images of 3 channels, given 1 channel; convert"):
        RestorationNetwork(Picky(), name="N")(images(1, 1, 8, 8))
    with pytest.raises(UserError, match=r"N: takes images of 1 channel, given 3 channels$"):
        RestorationNetwork(Picky(), name="N", in_channels=1)(images(1, 3, 8, 8))
    x = images(2, 1, 8, 8)
    assert torch.allclose(RestorationNetwork(Picky(), name="N", grey="repeat")(x), x)


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 3, 0, 8)])
def test_what_is_no_batch_of_images_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match="N: takes images"):
        RestorationNetwork(Picky(), name="N")(images(*shape))


def test_a_scale_that_is_not_the_networks_is_an_error_and_not_a_wrong_crop() -> None:
    wrapped = RestorationNetwork(Picky(scale=4), name="N", scale=2)
    with pytest.raises(UserError, match=r"N: gave 3x32x32 for 3x8x8; expected 3 channels and a sc"):
        wrapped(images(1, 3, 8, 8))


def test_it_is_frozen_whatever_is_around_it_and_free_on_request() -> None:
    net = Picky()
    frozen = nn.Sequential(RestorationNetwork(net, name="N")).train()
    x = images(1, 3, 8, 8).requires_grad_()
    assert not frozen(x).requires_grad
    assert not net.training
    assert not net.factor.requires_grad
    # What it gives may be an input of a training: no tensor of inference mode.
    (frozen(x) * torch.ones((), requires_grad=True)).sum().backward()

    free = RestorationNetwork(Picky(), name="N", frozen=False, tile=6, overlap=2)
    assert free.train().net.training
    free(x).sum().backward()
    assert torch.allclose(x.grad, torch.ones_like(x))
    assert free.net.factor.grad is not None
    free.freeze()
    assert not free(x).requires_grad
    free.freeze(False)
    assert free(x).requires_grad


@pytest.mark.parametrize(
    ("allowed", "inside"), [((torch.bfloat16,), torch.bfloat16), ((), torch.float32)]
)
def test_under_autocast_it_runs_in_the_types_it_can(
    allowed: tuple[torch.dtype, ...], inside: torch.dtype
) -> None:
    net = Picky()
    wrapped = RestorationNetwork(net, name="N", autocast=allowed)
    with torch.autocast("cpu", torch.bfloat16):
        out = wrapped(images(1, 3, 8, 8))
        half = wrapped(images(1, 3, 8, 8).bfloat16())
    assert net.types == [inside, inside]
    assert out.dtype == torch.float32
    assert half.dtype == torch.bfloat16
