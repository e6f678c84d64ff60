"""What each leaf of a picture looks like: its colour, and how it is shaded and textured.

Colours come from a palette per picture and vary mostly in luminance, as in photographs, where the
first principal component of RGB is close to grey (Ruderman, Cronin and Chiao, 1998).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lit_restore.data.dead_leaves.canvas import Floats, Leaves

_FIELDS = 4


@dataclass(frozen=True)
class Looks:
    """The look of each leaf; arrays of (leaves, …)."""

    colour: Floats
    """(n, 3) RGB."""
    tint: Floats
    """(n, 3) the direction in RGB in which shading and texture change the colour."""
    slope: Floats
    """(n, 2) shading along y and x, per radius."""
    bulge: Floats
    """(n,) shading with the squared distance from the centre."""
    weights: Floats
    """(n, 4) amplitude of each noise field."""
    wave: Floats
    """(n, 4) grating: amplitude, frequency along y and x (rad / pixel), sharpness."""
    height: Floats
    """(n,) above the ground; what is lower nearby lies in its shadow."""


def draw_looks(rng: np.random.Generator, leaves: Leaves) -> Looks:
    """Looks of all leaves of one picture."""
    count = len(leaves.radii)
    colour = _colours(rng, leaves.centres)
    luminance = colour.mean(1)
    strength = np.exp(rng.normal(np.log(0.13), 0.7, count)) * (0.3 + luminance)
    rough = rng.random(count) < rng.uniform(0.4, 0.95)
    weights = rng.dirichlet(np.full(_FIELDS, 0.4), count) * (strength * rough)[:, None]
    angle = rng.uniform(0, np.pi, count)
    frequency = np.exp(rng.uniform(np.log(0.15), np.log(2.2), count))
    striped = (rng.random(count) < rng.uniform(0, 0.25)) * np.minimum(strength, 0.25)
    shaded = np.exp(rng.normal(np.log(0.06), 0.8, count)) * (0.2 + luminance)
    turn = rng.normal(rng.uniform(0, 2 * np.pi), 0.9, count)  # the light comes from one side
    return Looks(
        colour=colour,
        tint=_as32(1 + rng.normal(0, 0.12, (count, 3))),
        slope=_as32(np.stack([np.sin(turn), np.cos(turn)], 1) * shaded[:, None]),
        bulge=_as32(-shaded * rng.random(count)),
        weights=_as32(weights),
        wave=_as32(
            np.stack(
                [
                    striped,
                    frequency * np.sin(angle),
                    frequency * np.cos(angle),
                    np.exp(rng.uniform(-1, 1.5, count)),
                ],
                1,
            )
        ),
        height=_as32(rng.random(count) * (rng.random(count) < rng.uniform(0.1, 0.9))),
    )


def _colours(rng: np.random.Generator, centres: Floats) -> Floats:
    """Colours of one picture: palette entries, changed mostly in luminance.

    Neighbours often share an entry, as the leaves of a tree or the stones of a wall do.
    """
    count, entries = len(centres), int(rng.integers(3, 9))
    luminance = rng.beta(1.0, 1.3, entries)
    palette = luminance[:, None] + _chroma(rng, entries) * (0.3 + luminance)[:, None]
    homes = rng.uniform(0, 1, (3 * entries, 2)) * centres[0] * 2
    distance = np.square(centres[:, None, :] - homes).sum(2)
    nearest = distance.argmin(1) % entries
    chosen = np.where(
        rng.random(count) < rng.uniform(0.2, 0.8), nearest, rng.integers(0, entries, count)
    )
    colour = palette[chosen]
    light = rng.normal(0, rng.uniform(0.05, 0.25), (count, 1)) * (0.3 + colour.mean(1)[:, None])
    return _as32(np.clip(colour + light + rng.normal(0, 0.012, (count, 3)), 0.0, 1.0))


def _chroma(rng: np.random.Generator, entries: int) -> npt.NDArray[np.float64]:
    """(entries, 3) chroma: mostly along blue–yellow and orange–teal, little green–magenta."""
    warm = np.array([1.0, 0.1, -1.1])
    green = np.array([-0.5, 1.0, -0.5])
    saturation = rng.gamma(1.6, 0.05)
    mood = rng.normal(0, 0.06)  # the light's own colour
    along = rng.normal(0, saturation, (entries, 1)) + mood
    across = rng.normal(0, 0.35 * saturation, (entries, 1))
    chroma: npt.NDArray[np.float64] = along * warm + across * green
    return chroma


def _as32(values: npt.ArrayLike) -> Floats:
    return np.asarray(values, np.float32)
