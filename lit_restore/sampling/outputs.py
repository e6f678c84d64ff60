"""What is made of finished images: a grid to look at, an array for other evaluators."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lit_restore.errors import UserError
from lit_restore.io import images
from lit_restore.io.npz_rows import NpzRows

MOST_IN_GRID = 64

_GAP = 2
_MOST_COLUMNS = 16


def write_grid(target: Path, files: Sequence[Path], *, classes: int) -> None:
    """The first images in rows and columns on white, a class a column where few classes take turns.

    Args:
        target: the PNG.
        files: images of one size; `MOST_IN_GRID` of them are shown.
        classes: how many labels take turns; 0 for none.

    Raises:
        OSError: the disk refused.
    """
    shown = [_pixels(path) for path in files[:MOST_IN_GRID]]
    in_turn = 1 < classes <= _MOST_COLUMNS and len(shown) > classes
    columns = classes if in_turn else math.ceil(math.sqrt(len(shown)))
    rows = math.ceil(len(shown) / columns)
    height, width = (side + _GAP for side in shown[0].shape[:2])
    grid = np.full((rows * height - _GAP, columns * width - _GAP, 3), 255, np.uint8)
    for place, pixels in enumerate(shown):
        top, left = place // columns * height, place % columns * width
        grid[top : top + height - _GAP, left : left + width - _GAP] = pixels
    images.write_png(target, grid)


def write_npz(target: Path, files: Sequence[Path]) -> None:
    """The images as one array, `arr_0` (N, H, W, 3) uint8, as ADM's evaluator reads them.

    Args:
        target: the file, written wholly or not at all.
        files: images of one size.

    Raises:
        OSError: the disk refused.
    """
    shape = _pixels(files[0]).shape
    with NpzRows(target, "arr_0", (len(files), *shape), np.dtype(np.uint8)) as rows:
        for path in files:
            pixels = _pixels(path)
            if pixels.shape != shape:
                raise UserError(f"is of another size than {files[0].name}; remove it", where=path)
            rows.write(pixels)


def _pixels(path: Path) -> npt.NDArray[np.uint8]:
    return np.asarray(images.read_picture(path).pixels, np.uint8)
