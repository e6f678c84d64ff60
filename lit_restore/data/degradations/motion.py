"""Blur of a camera that moves while the shutter is open."""

from __future__ import annotations

import cmath
import math
from typing import Literal

import torch
from torch import Tensor

from lit_restore.data.degradations.base import (
    KEY,
    Degradation,
    require_range,
    require_within,
    uniform,
    with_noise,
)
from lit_restore.errors import require_choice
from lit_restore.ops.blur import convolve, path_kernel

Path = Literal["shake", "line"]
POINTS = 2000
"""Points of a path; the model's rates are for so many."""

_CENTRIPETAL, _GAUSSIAN, _BIG_SHAKES = 0.7, 10.0, 0.2


class MotionBlur(Degradation):
    """A random path of the camera, of length ~ U[length_min, length_max] pixels, and noise.

    The whole image moves alike, and the path's centre of mass stays in its place. `shake` is the
    random motion of Boracchi & Foi (2012, IEEE TIP 21(8), 3502-3517), which DeblurGAN's training
    follows (Kupyn et al. 2018, arXiv 1711.07064, algorithm 1): inertia, a pull to the start,
    jitter, and now and then an abrupt turn back. `line` is straight, at a random angle.

    Args:
        length_min: shortest path, pixels.
        length_max: longest path, pixels, to 200.
        path: shake or line.
        anxiety: how shaky the hand is, 0 (as a line) to 0.1; `shake` alone.
        noise: standard deviation of the white noise added afterwards, in image units; unclipped.

    Raises:
        UserError: an option out of range, or no such path.
    """

    def __init__(
        self,
        length_min: float = 5.0,
        length_max: float = 40.0,
        path: Path = "shake",
        anxiety: float = 0.005,
        noise: float = 0.0,
    ) -> None:
        require_range("length", length_min, length_max, least=0, most=200)
        require_choice(path, ("shake", "line"), where=f"{KEY}.path")
        require_within("anxiety", anxiety, least=0, most=0.1)
        require_within("noise", noise, least=0, most=1)
        super().__init__(
            length_min=length_min, length_max=length_max, path=path, anxiety=anxiety, noise=noise
        )
        self.length_min, self.length_max = length_min, length_max
        self.path, self.anxiety, self.noise = path, anxiety, noise

    def __call__(self, image: Tensor, generator: torch.Generator) -> Tensor:
        """(C, H, W) → (C, H, W); the image beyond its borders is its mirror image."""
        length = float(uniform(self.length_min, self.length_max, generator))
        anxiety = self.anxiety if self.path == "shake" else 0.0
        kernel = path_kernel(camera_path(length, anxiety, generator))
        return with_noise(convolve(image, kernel.to(image)), self.noise, generator)


def camera_path(length: float, anxiety: float, generator: torch.Generator) -> Tensor:
    """A random path of constant speed, its centre of mass at 0.

    With unit steps u the direction changes by du = s + a (g n - c x), x being the place, n complex
    white noise, c ~ U[0, 0.7) and g ~ U[0, 10) drawn for the path, a the anxiety, and s, with
    probability U[0, 0.2) · a, a turn back within half a radian: -2 u exp(i (r - 1/2)).

    Args:
        length: pixels.
        anxiety: a; 0 for a straight line.
        generator: all randomness.

    Returns:
        (POINTS, 2) rows and columns in pixels, float64 on the CPU.
    """
    device, double = generator.device, torch.float64
    given = torch.rand(4, generator=generator, device=device, dtype=double)
    chance = torch.rand(POINTS - 1, 2, generator=generator, device=device, dtype=double)
    normal = torch.randn(POINTS - 1, 2, generator=generator, device=device, dtype=double)
    angle, pull, jitter, shakes = given.tolist()
    pull, jitter, shakes = _CENTRIPETAL * pull, _GAUSSIAN * jitter, _BIG_SHAKES * shakes
    step = length / (POINTS - 1)
    place, direction = 0j, cmath.exp(2j * math.pi * angle)
    places = [place]
    for (event, turn), (real, imaginary) in zip(chance.tolist(), normal.tolist(), strict=True):
        change = anxiety * (jitter * complex(real, imaginary) - pull * place)
        if event < shakes * anxiety:
            change -= 2 * direction * cmath.exp(1j * (turn - 0.5))
        direction += change
        direction /= abs(direction) or 1.0
        place += step * direction
        places.append(place)
    path = torch.view_as_real(torch.tensor(places, dtype=torch.complex128))
    return path - path.mean(0)
