"""The shapes of large leaves: each draws its proportions and returns a test of (u, v).

Coordinates are over the leaf's radius, so that a disc would be u² + v² <= 1.
"""

from __future__ import annotations

import numpy as np

from lit_restore.data.dead_leaves.canvas import Floats, Mask, Shape


def draw_shape(rng: np.random.Generator) -> Shape:
    """A shape of a random kind."""
    kind = min(int(np.searchsorted(_SHARES, rng.random())), len(_SHAPES) - 1)
    return _SHAPES[kind](rng)


def _ellipse(rng: np.random.Generator) -> Shape:
    squeeze = np.float32(rng.uniform(0.3, 1))
    return lambda u, v: u * u + np.square(v / squeeze) <= 1


def _box(rng: np.random.Generator) -> Shape:
    a, b = np.float32(rng.uniform(0.6, 1)), np.float32(rng.uniform(0.08, 1))
    return lambda u, v: (np.abs(u) <= a) & (np.abs(v) <= b)


def _rounded(rng: np.random.Generator) -> Shape:
    squeeze = np.float32(rng.uniform(0.2, 1))
    return lambda u, v: np.square(u * u) + np.square(np.square(v / squeeze)) <= 1


def _polygon(rng: np.random.Generator) -> Shape:
    sides = int(rng.integers(3, 8))
    turn = (np.arange(sides) + rng.uniform(-0.3, 0.3, sides)) * (2 * np.pi / sides)
    normals = np.stack([np.cos(turn), np.sin(turn)], 1).astype(np.float32)
    reach = rng.uniform(0.4, 0.95, sides).astype(np.float32)

    def inside(u: Floats, v: Floats) -> Mask:
        result = u * u + v * v <= 2
        for (a, b), r in zip(normals, reach, strict=True):
            result &= u * a + v * b <= r
        return result

    return inside


def _blob(rng: np.random.Generator) -> Shape:
    # The edge is Re Σ a_k z^k, z = (u + iv) / |u + iv|: a Fourier series in the angle.
    order = np.arange(2, 8)
    height = rng.normal(0, rng.uniform(0.1, 0.5), 6) / order
    waves = (height * np.exp(2j * np.pi * rng.random(6))).astype(np.complex64)

    def inside(u: Floats, v: Floats) -> Mask:
        square = u * u + v * v
        z = (u + 1j * v) / np.sqrt(np.maximum(square, np.float32(1e-6)))
        series = np.full_like(z, waves[-1])
        for wave in waves[-2::-1]:
            series = series * z + wave
        edge = np.maximum(np.float32(0.9) + (series * (z * z)).real, 0)
        return square <= edge * edge

    return inside


def _ring(rng: np.random.Generator) -> Shape:
    hole = np.float32(rng.uniform(0.5, 0.95) ** 2)
    cut = np.float32(rng.uniform(-1, 1))

    def inside(u: Floats, v: Floats) -> Mask:
        square = u * u + v * v
        return (square <= 1) & (square >= hole) & (u > cut - 1)

    return inside


def _lattice(rng: np.random.Generator) -> Shape:
    """Windows in a wall, tiles, planks: a box with a second leaf in its cells."""
    a, b = rng.uniform(0.4, 1, 2).astype(np.float32)
    pitch = rng.uniform(0.08, 0.5, 2).astype(np.float32)
    share = rng.uniform(0.4, 0.95, 2).astype(np.float32)
    staggered = rng.random() < 0.4
    planks = rng.random() < 0.3

    def inside(u: Floats, v: Floats) -> Mask:
        column, row = u / pitch[0], v / pitch[1]
        if staggered:
            column = column + np.float32(0.5) * (np.floor(row) % 2)
        cells = (row - np.floor(row)) < share[1]
        if not planks:
            cells &= (column - np.floor(column)) < share[0]
        within = (np.abs(u) <= a) & (np.abs(v) <= b)
        result: Mask = within.astype(np.int8) * (1 + cells)
        return result

    return inside


_SHAPES = (_ellipse, _box, _rounded, _polygon, _blob, _ring, _lattice)
_SHARES = np.cumsum([0.22, 0.16, 0.1, 0.2, 0.18, 0.05, 0.09])
