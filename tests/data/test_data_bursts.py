"""Laws of the burst pipeline: what is lost is only what a camera loses."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lit_restore.data.bursts import (
    BurstOptions,
    BurstParameters,
    draw_parameters,
    process,
    synthesize_burst,
    unprocess,
)
from lit_restore.data.bursts.mosaic import half_size_rgb, mosaic, pack, unpack
from lit_restore.data.bursts.motion import move_and_shrink
from lit_restore.errors import UserError

STILL = BurstOptions(max_translation=0, max_rotation=0, noise=False)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def picture(height: int = 72, width: int = 80, seed: int = 0) -> Tensor:
    """Muted colours, neither black nor white: no camera of ours clips them."""
    grey = 0.15 + 0.55 * torch.rand(1, height, width, generator=generator(seed))
    tint = 0.04 * torch.rand(3, height, width, generator=generator(seed + 1))
    return (grey + tint).double()


def binomial(x: Tensor) -> Tensor:
    """[1, 2, 1]/4 along both axes at the inner pixels of (…, H, W)."""
    x = (x[..., :-2, :] + 2 * x[..., 1:-1, :] + x[..., 2:, :]) / 4
    return (x[..., :-2] + 2 * x[..., 1:-1] + x[..., 2:]) / 4


@pytest.mark.parametrize("seed", range(8))
def test_process_inverts_unprocess_where_nothing_is_clipped(seed: int) -> None:
    image = picture(seed=seed)
    parameters = draw_parameters(2, generator(seed)).to(image)
    linear = unprocess(image, parameters)
    assert linear.min() > 0
    assert linear.max() < 1
    assert (process(linear, parameters) - image).abs().max() < 1e-6


def test_a_batch_is_processed_as_its_pictures_are() -> None:
    images = torch.stack([picture(seed=0), picture(seed=2)])
    several = [draw_parameters(2, generator(seed)).to(images) for seed in range(2)]
    together = BurstParameters.stack(several)
    linear = unprocess(images, together)
    for k, parameters in enumerate(several):
        assert torch.allclose(linear[k], unprocess(images[k], parameters), atol=1e-14)
    assert (process(linear, together) - images).abs().max() < 1e-6


def test_white_stays_white_and_black_black_for_every_camera() -> None:
    for value in (0.0, 1.0):
        image = torch.full((3, 2, 2), value, dtype=torch.float64)
        parameters = draw_parameters(1, generator(3)).to(image)
        assert torch.allclose(unprocess(image, parameters), image, atol=1e-7)
        assert torch.allclose(process(image, parameters), image, atol=1e-6)


def test_packing_is_a_rearrangement_of_the_mosaic() -> None:
    image = torch.rand(2, 3, 6, 8, generator=generator())
    seen = mosaic(image)
    planes = pack(seen)
    assert torch.equal(unpack(planes), seen)
    assert torch.equal(planes[:, 0], image[:, 0, ::2, ::2])
    assert torch.equal(planes[:, 1], image[:, 1, ::2, 1::2])
    assert torch.equal(planes[:, 2], image[:, 1, 1::2, ::2])
    assert torch.equal(planes[:, 3], image[:, 2, 1::2, 1::2])


def test_half_size_rgb_of_a_plain_colour_is_that_colour() -> None:
    colour = torch.tensor([0.25, 0.5, 0.75]).view(3, 1, 1).expand(3, 4, 4)
    assert torch.equal(half_size_rgb(pack(mosaic(colour))), colour[:, :2, :2])


def test_without_motion_every_fourth_pixel_is_seen_through_a_binomial_filter() -> None:
    image = picture(56, 64)
    frames = move_and_shrink(image, torch.eye(2, 3).expand(2, 2, 3), border=8)
    expected = binomial(image[:, 7:-7, 7:-7])[:, ::4, ::4]
    assert frames.shape == (2, 3, 10, 12)
    assert (frames - expected).abs().max() < 1e-12


def test_motion_moves_a_plane_of_brightness_as_its_matrix_says() -> None:
    # Bilinear sampling is exact on a plane: the value at p must be that of R p + t.
    border, height, width = 16, 48, 64
    slope = torch.tensor([0.003, -0.002], dtype=torch.float64)
    rows = torch.arange(height + 2 * border).double()[:, None] - (height + 2 * border - 1) / 2
    columns = torch.arange(width + 2 * border).double() - (width + 2 * border - 1) / 2
    image = (0.5 + slope[0] * columns + slope[1] * rows).expand(3, -1, -1)
    motion = draw_parameters(
        4, generator(5), BurstOptions(max_translation=6, max_rotation=5)
    ).motion.double()

    across = columns[border : border + width : 4].expand(height // 4, -1)
    down = rows[border : border + height : 4].expand(-1, width // 4)
    places = torch.stack([across, down], dim=-1)
    seen = places @ motion[:, None, :, :2].mT + motion[:, None, None, :, 2]
    expected = 0.5 + seen @ slope
    frames = move_and_shrink(image, motion, border)
    assert (frames - expected[:, None]).abs().max() < 1e-12


def test_a_still_burst_without_noise_is_the_mosaic_of_the_shrunk_picture() -> None:
    image = picture(72, 80)
    burst, target, parameters = synthesize_burst(image, 3, generator(), STILL)
    linear = unprocess(image, parameters)
    shrunk = binomial(linear[:, 23:-23, 23:-23])[:, ::4, ::4]
    assert torch.equal(target, linear[:, 24:-24, 24:-24])
    assert (burst - pack(mosaic(shrunk))).abs().max() < 1e-12


def test_a_target_pixel_lies_at_every_eighth_of_a_packed_one() -> None:
    burst, target, _ = synthesize_burst(picture(100, 133), 5, generator())
    assert burst.shape == (5, 4, 6, 10)
    assert target.shape == (3, 48, 80)
    assert burst.min() >= 0
    assert burst.max() <= 1


def test_the_reference_stays_and_the_others_move_within_bounds() -> None:
    motion = draw_parameters(500, generator()).motion
    assert torch.equal(motion[0], torch.eye(2, 3))
    angle = torch.atan2(motion[:, 1, 0], motion[:, 0, 0]).rad2deg()
    for drawn, limit in ((angle, 1.0), (motion[:, 0, 2], 24.0), (motion[:, 1, 2], 24.0)):
        assert 0.97 * limit < drawn.max() <= limit
        assert -limit <= drawn.min() < -0.97 * limit
    identity = motion[:, :, :2] @ motion[:, :, :2].mT
    assert torch.allclose(identity, torch.eye(2).expand(500, 2, 2), atol=1e-6)


def test_the_generator_decides_everything_and_the_noise_changes_nothing_else() -> None:
    image = picture().float()
    first, again, other = (synthesize_burst(image, 3, generator(s)) for s in (1, 1, 2))
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0])
    quiet = synthesize_burst(image, 3, generator(1), BurstOptions(noise=False))
    assert torch.equal(quiet[1], first[1])
    assert torch.equal(quiet[2].motion, first[2].motion)
    assert quiet[2].shot == quiet[2].read == 0


def test_parameters_are_stacked_to_tensors_and_back() -> None:
    several = [draw_parameters(3, generator(seed)) for seed in range(4)]
    together = BurstParameters.stack(several)
    assert together.ccm.shape == (4, 3, 3)
    assert together.motion.shape == (4, 3, 2, 3)
    carried = BurstParameters(**together.as_tensors())
    for one, same in zip(several, carried.unstack(), strict=True):
        for name, tensor in one.as_tensors().items():
            assert torch.equal(same.as_tensors()[name], tensor)


@pytest.mark.parametrize("shape", [(3, 55, 80), (3, 80, 55), (1, 80, 80)])
def test_pictures_that_make_no_burst_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match=r"^image: .* makes no burst; .* at least 56 pixels"):
        synthesize_burst(torch.zeros(shape), 2, generator())


def test_negative_options_are_refused() -> None:
    with pytest.raises(UserError, match="border"):
        BurstOptions(border=-1)
