"""Starting a network from another run's weights, as far as they fit."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from lit_restore.errors import UserError
from lit_restore.networks.base import Network
from lit_restore.weights.loading import load_network
from lit_restore.weights.pieces import local_part
from lit_restore.weights.transfer import cut_like


@dataclass(frozen=True)
class TransferReport:
    """What a fine-tune took over."""

    source: str
    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    """Tensors of the network that the source does not have, or has in another shape."""
    unexpected: tuple[str, ...]
    """Tensors of the source that the network does not have."""

    def __str__(self) -> str:
        parts = [f"{self.source}: {len(self.loaded)} tensors loaded"]
        for word, names in (("missing", self.missing), ("unexpected", self.unexpected)):
            shown = ", ".join(names[:5]) + (" …" if len(names) > 5 else "")
            parts.append(f"{len(names)} {word}" + (f" ({shown})" if names else ""))
        return ", ".join(parts)


@torch.no_grad()
def initialise(net: Network, source: Path) -> TransferReport:
    """Start `net` from another run's weights: whatever fits by name and shape, or can be made to.

    Args:
        net: the network to fill.
        source: a checkpoint folder, run folder or exported file; its first average is taken.

    Raises:
        UserError: unreadable, or nothing in it fits.
    """
    found = load_network(source).net
    stored = found.state_dict()
    if found.kind == net.kind:
        stored = net.adapted(stored)
    own = net.state_dict()
    loaded = tuple(n for n, t in own.items() if n in stored and stored[n].shape == t.shape)
    if not loaded:
        raise UserError(
            f"0 of {len(own)} tensors match {net.kind}; start from another checkpoint",
            where=source,
        )
    for name in loaded:
        local_part(own[name]).copy_(cut_like(own[name], stored[name]))
    return TransferReport(
        str(source),
        loaded,
        tuple(name for name in own if name not in loaded),
        tuple(name for name in stored if name not in own),
    )
