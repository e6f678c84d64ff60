"""A label map on which leaves are drawn over one another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int32]
Mask = npt.NDArray[np.bool_] | npt.NDArray[np.int8]
Shape = Callable[[Floats, Floats], Mask]
"""A test of coordinates over the leaf's radius: positive inside."""

SMALL = 12.0
"""Leaves up to this radius (pixels of the label map) are drawn many at once."""
STENCILS = (2, 4, 7, 12)
"""Radii that share one stencil."""


@dataclass(frozen=True)
class Leaves:
    """A label map and what is known of each leaf."""

    labels: Labels
    """(h, w): the leaf seen at each pixel; a higher number lies in front."""
    centres: Floats
    """(leaves, 2) y, x in pixels of the map."""
    radii: Floats
    """(leaves,)"""


class Canvas:
    """A label map while leaves are drawn onto it, back to front."""

    def __init__(self, height: int, width: int) -> None:
        self.labels: Labels = np.zeros((height, width), np.int32)
        self.height, self.width = height, width
        self._centres: list[Floats] = []
        self._radii: list[Floats] = []
        self.count = 0
        self.new(np.array([[height / 2, width / 2]]), np.array([max(height, width) / 2]))

    def new(self, centres: npt.ArrayLike, radii: npt.ArrayLike) -> Labels:
        """Labels for new leaves at `centres` (n, 2), in front of all others."""
        self._centres.append(np.asarray(centres, np.float32).reshape(-1, 2))
        self._radii.append(np.asarray(radii, np.float32).reshape(-1))
        first, self.count = self.count, self.count + len(self._radii[-1])
        return np.arange(first, self.count, dtype=np.int32)

    def leaves(self) -> Leaves:
        """What was drawn."""
        return Leaves(self.labels, np.concatenate(self._centres), np.concatenate(self._radii))

    def paint(self, centre: npt.ArrayLike, radius: float, angle: float, shape: Shape) -> None:
        """Draw one leaf where `shape(u, v)` (coordinates over the radius, turned) is positive.

        `shape` may return 2 at some points: those get a second leaf's label (patterns).
        """
        cy, cx = np.asarray(centre, float)
        reach = 1.5 * radius
        top, bottom = max(0, int(cy - reach)), min(self.height, int(cy + reach) + 1)
        left, right = max(0, int(cx - reach)), min(self.width, int(cx + reach) + 1)
        if top >= bottom or left >= right:
            return
        dy = ((np.arange(top, bottom, dtype=np.float32) - cy) / radius)[:, None]
        dx = ((np.arange(left, right, dtype=np.float32) - cx) / radius)[None, :]
        c, s = np.float32(np.cos(angle)), np.float32(np.sin(angle))
        inside = shape(c * dx + s * dy, c * dy - s * dx)
        first, second = self.new([[cy, cx]] * 2, [radius] * 2)
        window = self.labels[top:bottom, left:right]
        window[inside > 0] = first
        if inside.dtype != np.bool_:
            window[inside > 1] = second

    def stamp(
        self,
        centres: Floats,
        radii: Floats,
        labels: Labels,
        *,
        squeeze: Floats | None = None,
        angles: Floats | None = None,
    ) -> None:
        """Draw many small discs, or ellipses, in order; chains of them make lines.

        Args:
            centres: (n, 2) y, x.
            radii: (n,), at most `SMALL`.
            labels: (n,)
            squeeze: (n,) short axis over long axis.
            angles: (n,) directions of the long axes.
        """
        if len(radii) == 0:
            return
        reach = next(k for k in STENCILS if k >= radii.max() - 1e-3)
        step = np.arange(-reach, reach + 1, dtype=np.float32)
        corner = np.rint(centres).astype(np.int32)
        offset = (corner - centres).astype(np.float32)
        dy = (step[None, :] + offset[:, :1])[:, :, None]
        dx = (step[None, :] + offset[:, 1:])[:, None, :]
        if squeeze is None or angles is None:
            inside = dy * dy + dx * dx <= (radii * radii)[:, None, None]
        else:
            c, s = (f(angles)[:, None, None] for f in (np.cos, np.sin))
            u, v = c * dx + s * dy, (c * dy - s * dx) / squeeze[:, None, None]
            inside = u * u + v * v <= (radii * radii)[:, None, None]
        which, row, column = np.nonzero(inside)
        y, x = corner[which, 0] + row - reach, corner[which, 1] + column - reach
        seen = (y >= 0) & (y < self.height) & (x >= 0) & (x < self.width)
        # Where places repeat, NumPy keeps the last one written: the leaf in front.
        self.labels.ravel()[y[seen] * self.width + x[seen]] = labels[which[seen]]


def displaced(leaves: Leaves, along_y: Floats, along_x: Floats) -> Leaves:
    """The leaves with edges as uneven as two fields (h / 2, w / 2) say, in pixels of the map."""
    height, width = leaves.labels.shape
    y = np.arange(height)[:, None] + np.rint(along_y).astype(np.int32).repeat(2, 0).repeat(2, 1)
    x = np.arange(width)[None, :] + np.rint(along_x).astype(np.int32).repeat(2, 0).repeat(2, 1)
    place = np.clip(y, 0, height - 1) * width + np.clip(x, 0, width - 1)
    return Leaves(leaves.labels.ravel()[place], leaves.centres, leaves.radii)
