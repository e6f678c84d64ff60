"""Weights of a backbone carried to another size, patch or set of classes."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def resized_positions(stored: Tensor, grid: tuple[int, int]) -> Tensor:
    """A position embedding for another grid, by bicubic interpolation.

    Args:
        stored: (1, N, D) of a square grid; another one cannot be told from N and is left as it is,
            as is one of as many tokens as are wanted.
        grid: rows and columns wanted.

    Returns:
        (1, rows · columns, D).
    """
    side = round(stored.shape[1] ** 0.5)
    if side * side != stored.shape[1] or stored.shape[1] == grid[0] * grid[1]:
        return stored
    picture = stored.view(1, side, side, -1).permute(0, 3, 1, 2)
    resized = F.interpolate(picture.float(), grid, mode="bicubic", align_corners=False)
    return resized.to(stored.dtype).flatten(2).transpose(1, 2)


def resized_patches(kernel: Tensor, patch: int) -> Tensor:
    """A patch embedding's kernel (D, C, p, p) for patches of another side.

    A smaller patch takes the kernel's top left corner, as DiMSUM's training does from patch 4 to
    2; a larger one repeats each weight over the pixels that take a pixel's place, and divides.
    """
    side = kernel.shape[-1]
    if patch <= side:
        return kernel[..., :patch, :patch]
    if patch % side:
        return kernel
    factor = patch // side
    return _repeated(kernel, factor) / factor**2


def resized_head(rows: Tensor, channels: int, patch: int) -> Tensor:
    """A head's weight (p² C, D) or bias (p² C) for patches of another side; as `resized_patches`.

    Rows are ordered (row in the patch, column in the patch, channel).
    """
    side = round((len(rows) / channels) ** 0.5)
    if side * side * channels != len(rows) or patch == side:
        return rows
    flat = rows.reshape(side, side, -1).permute(2, 0, 1)
    if patch < side:
        flat = flat[:, :patch, :patch]
    elif patch % side == 0:
        flat = _repeated(flat, patch // side)
    else:
        return rows
    return flat.permute(1, 2, 0).reshape(-1, *rows.shape[1:])


def more_classes(table: Tensor, rows: int) -> Tensor:
    """A label embedding for another number of classes: all start as the stored "no class".

    Args:
        table: (rows, D), the last row that of no class.
        rows: rows wanted.
    """
    if len(table) == rows:
        return table
    return table[-1:].expand(rows, -1).clone()


def _repeated(x: Tensor, factor: int) -> Tensor:
    return x.repeat_interleave(factor, -1).repeat_interleave(factor, -2)
