"""Where each leaf of a picture lies, how large it is, and what is drawn between.

Radii follow p(r) ~ r^-3, which with occlusion gives scale-invariant statistics (Lee, Mumford and
Huang, "Occlusion models for natural images", IJCV 2001). Discs alone would teach only round edges,
so there are other shapes, half-planes, lines and strokes.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import numpy.typing as npt

from lit_restore.data.dead_leaves.canvas import SMALL, STENCILS, Canvas, Floats, Leaves
from lit_restore.data.dead_leaves.shapes import draw_shape

_LAYERS = 5
_MOST = 5000

Array = npt.NDArray[np.float64]


def scatter(rng: np.random.Generator, height: int, width: int) -> Leaves:
    """A whole picture's leaves: background, five layers of leaves, lines and strokes.

    Args:
        rng: draws all of it.
        height: of the label map, pixels.
        width: of the label map, pixels.
    """
    canvas = Canvas(height, width)
    size = min(height, width)
    _background(canvas, rng)
    smallest = float(np.exp(rng.uniform(np.log(2.0), np.log(20.0))))
    radii = _radii(rng, height * width, smallest, size * rng.uniform(0.25, 0.7))
    for layer in np.array_split(radii, _LAYERS):
        _layer(canvas, rng, layer, _places(canvas, rng, layer))
        if rng.random() < 0.35:
            _lines(canvas, rng)
    if rng.random() < 0.2:
        _strokes(canvas, rng)
    return canvas.leaves()


def _background(canvas: Canvas, rng: np.random.Generator) -> None:
    reach = float(np.hypot(canvas.height, canvas.width))
    for _ in range(rng.integers(0, 4)):
        centre = rng.uniform(0, 1, 2) * (canvas.height, canvas.width)
        canvas.paint(centre, reach, _upright(rng), lambda u, v: u > 0)


def _upright(rng: np.random.Generator) -> float:
    """A direction; horizontal and vertical are the likeliest ones, as in photographs."""
    if rng.random() < 0.5:
        return float(rng.integers(4) * np.pi / 2 + rng.normal(0, 0.06))
    return float(rng.uniform(0, 2 * np.pi))


def _radii(rng: np.random.Generator, area: int, smallest: float, largest: float) -> Array:
    """Radii with density ~ r^-3 between two bounds, enough to cover `area` 0.7 to 3 times."""
    mean_square = 2 * np.log(largest / smallest) / (smallest**-2 - largest**-2)
    cover = float(np.exp(rng.uniform(np.log(0.7), np.log(3.0))))
    count = int(min(_MOST, max(12, cover * area / (0.7 * np.pi * mean_square))))
    # Inverse of the distribution function F(r) = (a - r^-2) / (a - b), a, b the bounds' powers.
    near, far = smallest**-2.0, largest**-2.0
    radii: Array = (near - rng.random(count) * (near - far)) ** -0.5
    return radii


def _places(canvas: Canvas, rng: np.random.Generator, radii: Array) -> Array:
    """Centres (n, 2): large leaves anywhere, most small ones in heaps, so that plain areas stay."""
    extent = np.array([canvas.height, canvas.width])
    places = rng.uniform(-0.05, 1.05, (len(radii), 2)) * extent
    heaps = rng.uniform(-0.1, 1.1, (int(rng.integers(1, 5)), 2)) * extent
    spread = np.exp(rng.uniform(np.log(0.04), np.log(0.3), len(heaps))) * extent.min()
    heap = rng.integers(0, len(heaps), len(radii))
    steps = rng.normal(0, 1, (len(radii), 2)) * spread[heap, None] * rng.uniform(0.3, 1, 2)
    heaped = (radii < 2 * SMALL) & (rng.random(len(radii)) < rng.choice([0.2, 0.9, 0.98]))
    chosen: Array = np.where(heaped[:, None], heaps[heap] + steps, places)
    return chosen


def _layer(canvas: Canvas, rng: np.random.Generator, radii: Array, places: Array) -> None:
    large = radii > SMALL
    for radius, place in zip(radii[large], places[large], strict=True):
        canvas.paint(place, float(radius), _upright(rng), draw_shape(rng))
    small_places, small_radii = places[~large].astype(np.float32), radii[~large].astype(np.float32)
    labels = canvas.new(small_places, small_radii)
    squeeze = rng.uniform(0.25, 1, len(labels)).astype(np.float32)
    turned = rng.uniform(0, np.pi) + rng.normal(0, rng.uniform(0.1, 2), len(labels))
    angles = turned.astype(np.float32)
    bounds = (0, *STENCILS)
    for low, high in pairwise(bounds):
        chosen = (small_radii > low) & (small_radii <= high)
        canvas.stamp(
            small_places[chosen],
            small_radii[chosen],
            labels[chosen],
            squeeze=squeeze[chosen],
            angles=angles[chosen],
        )


def _chain(points: Array) -> Floats:
    """Points (n, 2) of a path → points at most half a pixel apart along it."""
    lengths = np.hypot(*np.diff(points, axis=0).T)
    along = np.concatenate([[0], np.cumsum(lengths)])
    at = np.linspace(0, along[-1], max(2, int(2 * along[-1])))
    return np.stack([np.interp(at, along, points[:, k]) for k in (0, 1)], 1).astype(np.float32)


def _draw(canvas: Canvas, path: Floats, width: float, label: np.int32) -> None:
    count = len(path)
    canvas.stamp(path, np.full(count, width, np.float32), np.full(count, label, np.int32))


def _lines(canvas: Canvas, rng: np.random.Generator) -> None:
    """Wires, twigs, hair, fences: bent lines, alone or in parallel."""
    extent = np.array([canvas.height, canvas.width])
    t = np.linspace(0, 1, 12)[:, None]
    for _ in range(rng.integers(1, 4)):
        a, b = rng.uniform(-0.1, 1.1, (2, 2)) * extent
        bend = (a + b) / 2 + rng.normal(0, rng.uniform(0, 0.15), 2) * extent
        curve = (1 - t) ** 2 * a + 2 * t * (1 - t) * bend + t**2 * b
        copies = int(rng.integers(3, 14)) if rng.random() < 0.3 else 1
        shift = rng.normal(0, 0.05, 2) * extent
        width = float(rng.uniform(0.7, 3.0))
        label = canvas.new([(a + b) / 2], [np.hypot(*(a - b)) / 2 + 1])[0]
        for k in range(copies):
            _draw(canvas, _chain(curve + k * shift), width, label)


def _strokes(canvas: Canvas, rng: np.random.Generator) -> None:
    """Rows of text-like signs: two to four short strokes in each cell of a line."""
    height = rng.uniform(8, 40)
    width = float(rng.uniform(0.06, 0.11) * height)
    origin = rng.uniform(0.05, 0.7, 2) * (canvas.height, canvas.width)
    angle = rng.normal(0, 0.1)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    label = canvas.new([origin], [4 * height])[0]
    corners = np.array([[i, j] for i in (0, 0.5, 1) for j in (0, 0.6)])
    paths = []
    for row in range(rng.integers(1, 5)):
        for column in range(rng.integers(3, 16)):
            if rng.random() < 0.15:
                continue  # a space
            cell = np.array([1.6 * row, 0.85 * column])
            sign = corners[rng.permutation(6)[: rng.integers(3, 6)]]
            paths.append(_chain(((cell + sign) * height) @ turn.T + origin))
    if paths:
        _draw(canvas, np.concatenate(paths), min(width, SMALL), label)
