"""What is drawn for a burst has the published distributions."""

from __future__ import annotations

import math

import torch

from lit_restore.data.bursts.cameras import draw_ccm, draw_gains
from lit_restore.data.bursts.noise import LOG_SHOT, add_noise, draw_noise_levels
from lit_restore.data.bursts.unprocessing import apply_matrix, inverse_smoothstep, smoothstep

DRAWS = 2000


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_noise_has_the_variance_of_light_and_reading() -> None:
    shot, read = torch.tensor(0.01), torch.tensor(0.0005)
    levels = torch.tensor([0.0, 0.2, 0.9])
    x = levels.repeat(200_000, 1)
    noise = add_noise(x, shot, read, generator()) - x
    variance = shot * levels + read
    assert (noise.mean(0).abs() < 5 * (variance / len(x)).sqrt()).all()
    assert (noise.var(0) / variance - 1).abs().max() < 5 * math.sqrt(2 / len(x))
    centred = noise / variance.sqrt()
    assert (centred.pow(4).mean(0) / 3 - 1).abs().max() < 0.05, "normal"


def test_read_noise_follows_shot_noise_along_a_line() -> None:
    rng = generator()
    log = torch.tensor([draw_noise_levels(rng) for _ in range(DRAWS)]).log()
    assert LOG_SHOT[0] <= log[:, 0].min() < LOG_SHOT[0] + 0.05
    assert LOG_SHOT[1] - 0.05 < log[:, 0].max() <= LOG_SHOT[1]
    rest = log[:, 1] - 2.18 * log[:, 0] - 1.20
    assert abs(rest.mean()) < 5 * 0.26 / math.sqrt(DRAWS)
    assert abs(rest.std() / 0.26 - 1) < 5 / math.sqrt(2 * DRAWS)


def test_gains_are_of_their_ranges() -> None:
    rng = generator()
    rgb, red, blue = torch.tensor([draw_gains(rng) for _ in range(DRAWS)]).unbind(1)
    assert abs((1 / rgb).mean() - 0.8) < 5 * 0.1 / math.sqrt(DRAWS)
    assert abs((1 / rgb).std() / 0.1 - 1) < 5 / math.sqrt(2 * DRAWS)
    for gain, low, high in ((red, 1.9, 2.4), (blue, 1.5, 1.9)):
        assert low <= gain.min() < low + 0.01
        assert high - 0.01 < gain.max() <= high


def test_colour_matrices_keep_white_and_differ() -> None:
    rng = generator()
    several = torch.stack([draw_ccm(rng) for _ in range(20)])
    assert torch.allclose(several.sum(-1), torch.ones(20, 3), atol=1e-6)
    assert several.std(0).min() > 1e-3
    assert (several.diagonal(dim1=1, dim2=2) > 0.4).all(), "red is most of all red"


def test_a_matrix_times_its_inverse_leaves_colours() -> None:
    image = torch.rand(2, 3, 4, 5, generator=generator()).double()
    matrix = draw_ccm(generator()).double()
    back = apply_matrix(torch.linalg.inv(matrix), apply_matrix(matrix, image))
    assert (back - image).abs().max() < 1e-12


def test_the_tone_curve_is_inverted_on_all_of_its_range() -> None:
    x = torch.linspace(0, 1, 1001, dtype=torch.float64)
    assert (inverse_smoothstep(smoothstep(x)) - x).abs().max() < 1e-7
    assert (smoothstep(inverse_smoothstep(x)) - x).abs().max() < 1e-12
