"""Tensors into a network, exactly."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from lit_restore.errors import UserError


@torch.no_grad()
def load_exactly(net: nn.Module, stored: Mapping[str, Tensor], *, where: Path) -> None:
    """Copy a whole state dict into `net`, in place.

    Raises:
        UserError: a tensor is missing, unexpected or of another shape; says how many match.
    """
    own = net.state_dict()
    matching = [n for n, t in own.items() if n in stored and stored[n].shape == t.shape]
    if len(matching) < len(own) or len(stored) > len(own):
        odd = next((n for n in [*own, *stored] if n not in matching), "")
        raise UserError(
            f"{len(matching)} of {len(own)} tensors match {type(net).__name__} "
            f"(first difference: {odd}); the checkpoint is of another network",
            where=where,
        )
    for name, tensor in own.items():
        tensor.copy_(stored[name])
