"""Tensors that are spread over ranks: which part of the whole is held where.

A *box* of a tensor is (offset, shape): the part `whole[offset : offset + shape]` along every axis.
Plain tensors are one box, the whole of it; a DTensor (FSDP2) holds its rank's box.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor

Box: TypeAlias = tuple[tuple[int, ...], tuple[int, ...]]
"""Offset and shape within the whole tensor, both with one entry an axis."""


@dataclass(frozen=True)
class Piece:
    """One rank's part of a tensor."""

    tensor: Tensor
    """Dense, of the box's shape."""
    offset: tuple[int, ...]
    whole: tuple[int, ...]
    """Shape of the whole tensor."""


def is_spread(tensor: Tensor) -> bool:
    """Whether ranks hold parts of this tensor (a DTensor)."""
    return hasattr(tensor, "to_local")


@torch.no_grad()
def local_part(tensor: Tensor) -> Tensor:
    """What this rank holds, sharing memory with `tensor`."""
    if not is_spread(tensor):
        return tensor
    return cast(Tensor, cast(Any, tensor).to_local())


def box_of(tensor: Tensor) -> Box:
    """The box of the whole that this rank holds; may be empty."""
    if not is_spread(tensor):
        return (0,) * tensor.ndim, tuple(tensor.shape)
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    spread = cast(Any, tensor)
    shape, offset = compute_local_shape_and_global_offset(
        spread.shape, spread.device_mesh, spread.placements
    )
    return tuple(offset), tuple(shape)


def own_pieces(group: Mapping[str, Tensor], *, rank: int) -> dict[str, Piece]:
    """The pieces of a group of tensors that this rank writes.

    Of a spread tensor its own box, if not empty; a tensor that all ranks hold is rank 0's to write.
    """
    pieces = {}
    for name, tensor in group.items():
        offset, shape = box_of(tensor)
        spread = is_spread(tensor)
        if (spread and 0 not in shape) or (rank == 0 and not spread):
            pieces[name] = Piece(local_part(tensor).detach(), offset, tuple(tensor.shape))
    return pieces


def snapshot(pieces: Mapping[str, Piece]) -> dict[str, Piece]:
    """Copies on the CPU, which a later step does not change."""
    return {
        name: Piece(piece.tensor.to("cpu", copy=True), piece.offset, piece.whole)
        for name, piece in pieces.items()
    }


def overlap(one: Box, other: Box) -> Box | None:
    """The box that two boxes share, in coordinates of the whole; None where they share nothing."""
    begin = tuple(max(a, b) for a, b in zip(one[0], other[0], strict=True))
    ends = zip(one[0], one[1], other[0], other[1], strict=True)
    end = tuple(min(a + n, b + m) for a, n, b, m in ends)
    shape = tuple(stop - start for start, stop in zip(begin, end, strict=True))
    return None if any(size <= 0 for size in shape) else (begin, shape)


def within(box: Box, frame: Box) -> tuple[slice, ...]:
    """The slices that cut `box` out of a tensor that holds `frame`."""
    starts = zip(box[0], frame[0], box[1], strict=True)
    return tuple(slice(a - b, a - b + size) for a, b, size in starts)
