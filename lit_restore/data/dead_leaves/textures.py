"""Noise fields, and the shading and texture of every pixel."""

from __future__ import annotations

import numpy as np
import scipy.fft

from lit_restore.data.dead_leaves.canvas import Floats, Labels, Leaves
from lit_restore.data.dead_leaves.looks import Looks


def noise_fields(rng: np.random.Generator, height: int, width: int) -> list[Floats]:
    """Four stationary fields, (height, width), periodic, standard deviation one.

    Cloudy (amplitude ~ f^-1.5 … f^-0.8), fine grain, brushed along one direction, and speckled
    (grain pushed towards two levels).
    """
    fy = scipy.fft.fftfreq(height).astype(np.float32)[:, None]
    fx = scipy.fft.rfftfreq(width).astype(np.float32)[None, :]
    radius = np.sqrt(fy * fy + fx * fx)
    radius[0, 0] = 1
    angle = rng.uniform(0, np.pi)
    along = np.float32(np.cos(angle)) * fy + np.float32(np.sin(angle)) * fx
    cloudy = radius ** np.float32(-rng.uniform(0.8, 1.5))
    grain = _band(radius, rng.uniform(0.1, 0.4), 0.7)
    brushed = _band(radius, rng.uniform(0.06, 0.2), 0.9) * np.exp(
        -np.square(along / np.float32(0.02))
    )
    speckle = _band(radius, rng.uniform(0.03, 0.15), 0.5)
    fields = [_shaped(rng, filter_, height, width) for filter_ in (cloudy, grain, brushed, speckle)]
    fields[3] = np.tanh(np.float32(rng.uniform(1, 5)) * fields[3])
    return fields


def _band(radius: Floats, centre: float, octaves: float) -> Floats:
    """A log-Gaussian band around `centre` (cycles per pixel)."""
    distance = np.log2(radius / np.float32(centre)) / np.float32(octaves)
    band: Floats = np.exp(-np.square(distance)) / radius
    return band


def _shaped(rng: np.random.Generator, filter_: Floats, height: int, width: int) -> Floats:
    """Gaussian noise with the amplitude spectrum `filter_`, mean zero."""
    spectrum = scipy.fft.rfft2(rng.standard_normal((height, width), np.float32)) * filter_
    spectrum[0, 0] = 0
    field = scipy.fft.irfft2(spectrum, (height, width))
    result: Floats = field / np.maximum(field.std(), np.float32(1e-6))
    return result


def relief(leaves: Leaves, looks: Looks, fields: list[Floats], labels: Labels) -> Floats:
    """Shading and texture of every pixel, (H, W), to be added along the leaf's tint.

    Args:
        leaves: centres and radii, in pixels of the fine map.
        looks: by label.
        fields: from `noise_fields`, at least (H, W).
        labels: (H, W) every other pixel of the fine map.
    """
    height, width = labels.shape
    y = np.arange(height, dtype=np.float32)[:, None]
    x = np.arange(width, dtype=np.float32)[None, :]
    centre, scale = leaves.centres / 2, 2 / leaves.radii
    dy = (y - centre[:, 0][labels]) * scale[labels]
    dx = (x - centre[:, 1][labels]) * scale[labels]
    slope = looks.slope[labels]
    result: Floats = np.clip(slope[..., 0] * dy + slope[..., 1] * dx, -0.4, 0.4)
    result += np.clip(looks.bulge[labels] * (dy * dy + dx * dx), -0.4, 0.4)
    weights = looks.weights[labels]
    for k, field in enumerate(_shifted(fields, labels)):
        result += weights[..., k] * field
    wave = looks.wave[labels]
    # The cloudy field bends the stripes, so that no grating is perfectly regular.
    phase = wave[..., 1] * y + wave[..., 2] * x + fields[0]
    result += wave[..., 0] * np.tanh(wave[..., 3] * np.sin(phase))
    return result


def _shifted(fields: list[Floats], labels: Labels) -> list[Floats]:
    """The fields, moved by another amount in every leaf: no texture goes on behind an edge."""
    height, width = labels.shape
    rows, columns = np.arange(height)[:, None], np.arange(width)[None, :]
    place = (rows + 97 * labels) % height * width + (columns + 61 * labels) % width
    return [field.ravel()[place] for field in fields]
