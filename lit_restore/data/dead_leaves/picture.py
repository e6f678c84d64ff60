"""One picture from leaves, light, lens and tone curve."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from lit_restore.data.dead_leaves.canvas import Floats, Leaves, displaced
from lit_restore.data.dead_leaves.looks import Looks, draw_looks
from lit_restore.data.dead_leaves.scatter import scatter
from lit_restore.data.dead_leaves.textures import noise_fields, relief
from lit_restore.seeding import numpy_generator

VERSION = 1
"""Goes up when the same seed gives other pictures."""


def procedural_image(
    seed: int, index: int, *, size: tuple[int, int] = (256, 256)
) -> npt.NDArray[np.uint8]:
    """One picture, a pure function of its arguments.

    Args:
        seed: of the set.
        index: of the picture in the set.
        size: height and width, pixels; at least 16.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    height, width = size
    rng = numpy_generator(seed, index, f"procedural-{VERSION}")
    leaves = scatter(rng, 2 * height, 2 * width)
    looks = draw_looks(rng, leaves)
    fields = noise_fields(rng, height, width)
    if rng.random() < 0.6:
        leaves = _uneven(rng, leaves, fields[0])
    image = _coloured(leaves, looks, fields)
    image *= _light(rng, leaves, looks, fields[0])[..., None]
    return _developed(rng, _through_lens(rng, image, fields[0]))


def _uneven(rng: np.random.Generator, leaves: Leaves, clouds: Floats) -> Leaves:
    """Frayed and bent edges, as of foliage, rocks and cloth."""
    amount = np.float32(np.exp(rng.uniform(np.log(0.5), np.log(8.0))))
    return displaced(leaves, amount * clouds, amount * np.roll(clouds, (89, 53), (0, 1)))


def _coloured(leaves: Leaves, looks: Looks, fields: list[Floats]) -> Floats:
    """(H, W, 3) colour, shading and texture."""
    fine = leaves.labels
    height, width = fine.shape[0] // 2, fine.shape[1] // 2
    base = np.zeros((height, width, 3), np.float32)
    for row in (0, 1):
        for column in (0, 1):
            base += looks.colour[fine[row::2, column::2]]
    labels = np.ascontiguousarray(fine[::2, ::2])
    base *= np.float32(0.25)
    base += relief(leaves, looks, fields, labels)[..., None] * looks.tint[labels]
    return base


def _light(rng: np.random.Generator, leaves: Leaves, looks: Looks, clouds: Floats) -> Floats:
    """(H, W) factor: uneven light, and the shadows of what stands above its surroundings."""
    height = looks.height[leaves.labels[::2, ::2]]
    reach = rng.uniform(1.5, 8.0)
    toward = np.rint(rng.normal(0, reach, 2)).astype(int)
    around = ndimage.gaussian_filter(height, reach, truncate=2.5, mode="nearest")
    above = np.roll(around, tuple(toward), (0, 1)) - height
    shadow = np.clip(above, 0, None) * np.float32(rng.uniform(0, 1.3))
    slow = ndimage.zoom(clouds[::16, ::16], 16, order=1)[: height.shape[0], : height.shape[1]]
    light: Floats = np.maximum(1 - shadow, np.float32(0.1))
    light *= 1 + np.float32(rng.uniform(0, 0.15)) * slow
    return light


def _through_lens(rng: np.random.Generator, image: Floats, clouds: Floats) -> Floats:
    """Slight blur everywhere; in some pictures a part is out of focus."""
    sharp = _blur(image, rng.uniform(0.2, 0.55))
    if rng.random() > 0.25:
        return sharp
    soft = _blur(sharp, float(np.exp(rng.uniform(np.log(1.0), np.log(4.0)))))
    axis = int(rng.integers(2))
    ramp = np.linspace(-1, 1, image.shape[axis], dtype=np.float32)
    plane = np.expand_dims(ramp, 1 - axis)
    focus = 1 / (1 + np.exp(-8 * (plane * rng.choice([-1, 1]) + 0.15 * clouds)))
    mixed: Floats = sharp + focus[..., None].astype(np.float32) * (soft - sharp)
    return mixed


def _blur(image: Floats, sigma: float) -> Floats:
    blurred: Floats = ndimage.gaussian_filter(
        image, (sigma, sigma, 0), truncate=2.5, mode="reflect"
    )
    return blurred


def _developed(rng: np.random.Generator, image: Floats) -> npt.NDArray[np.uint8]:
    """Exposure and contrast of the picture, soft shoulders at black and white, 8 bits."""
    mean = rng.uniform(0.28, 0.6)
    spread = rng.uniform(0.12, 0.28)
    deviation = image - image.mean()
    toned = mean + deviation * np.float32(spread / max(float(image.std()), 0.02))
    # Straight but for exponential shoulders that never reach 0 and 1.
    curved = np.where(toned < 0.08, 0.08 * np.exp((toned - 0.08) / 0.08), toned)
    curved = np.where(curved > 0.92, 1 - 0.08 * np.exp((0.92 - curved) / 0.08), curved)
    levels: npt.NDArray[np.uint8] = np.rint(curved * 255).astype(np.uint8)
    return levels
