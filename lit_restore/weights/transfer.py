"""Tensors into a network, exactly."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from lit_restore.errors import UserError
from lit_restore.weights.pieces import box_of, local_part
from lit_restore.weights.stored import StoredGroup


@torch.no_grad()
def load_exactly(net: nn.Module, stored: Mapping[str, Tensor], *, where: Path) -> None:
    """Copy a whole state dict into `net`, in place; of whole tensors a sharded net takes its part.

    Raises:
        UserError: a tensor is missing, unexpected or of another shape; says how many match.
    """
    own = net.state_dict()
    _check(net, own, {name: tuple(tensor.shape) for name, tensor in stored.items()}, where)
    for name, tensor in own.items():
        local_part(tensor).copy_(cut_like(tensor, stored[name]))


@torch.no_grad()
def load_stored(net: nn.Module, stored: StoredGroup, *, where: Path) -> None:
    """Copy what lies on disk into `net`, in place; a sharded net reads its own part alone.

    Raises:
        UserError: as `load_exactly`, or a file is damaged.
    """
    own = net.state_dict()
    _check(net, own, {name: stored.shape(name) for name in stored}, where)
    for name, tensor in own.items():
        local_part(tensor).copy_(stored.read(name, box_of(tensor)))


def _check(
    net: nn.Module, own: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]], where: Path
) -> None:
    matching = [n for n, t in own.items() if shapes.get(n) == tuple(t.shape)]
    if len(matching) < len(own) or len(shapes) > len(own):
        odd = next((n for n in [*own, *shapes] if n not in matching), "")
        raise UserError(
            f"{len(matching)} of {len(own)} tensors match {type(net).__name__} "
            f"(first difference: {odd}); the checkpoint is of another network",
            where=where,
        )


def cut_like(like: Tensor, given: Tensor) -> Tensor:
    """The part of `given`, whole or spread as `like` is, that `like` holds of a tensor."""
    if type(given) is type(like):
        return local_part(given)
    offset, shape = box_of(like)
    return given[tuple(slice(a, a + n) for a, n in zip(offset, shape, strict=True))]
