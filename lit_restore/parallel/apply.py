"""Compilation and parallelism from outside, in one stated order.

Memory format → LoRA (not here yet) → activation checkpointing → compile, block by block → DDP
(Lightning's own strategy) or FSDP2. The order matters: what is checkpointed is compiled, what is
compiled is sharded, and the state dict keeps its names throughout.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from lit_restore.networks.base import Network
from lit_restore.ops.selective_scan import op as _  # noqa: F401  (registers the operator)


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What is applied to a network before it is trained."""

    activation_checkpointing: bool = False
    """Keep only the blocks' inputs and scans for the backward pass, and compute the rest again."""
    compile: bool = False
    """`torch.compile` the blocks."""


def prepare(net: Network, layout: Layout, mesh: DeviceMesh | None) -> None:
    """Apply a layout in the stated order.

    Args:
        net: the network that is trained, whole.
        layout: what to apply.
        mesh: the ranks to shard over; none for one device or DDP.
    """
    if mesh is None:
        use_channels_last(net)  # FSDP2 shards contiguous tensors only
    if layout.activation_checkpointing:
        checkpoint_blocks(net)
    if layout.compile:
        compile_blocks(net)
    if mesh is not None:
        shard(net, mesh)


def use_channels_last(net: Network) -> None:
    """Lay convolution kernels out as images are decoded: faster on CPUs and on tensor cores."""
    net.to(memory_format=torch.channels_last)


def checkpoint_blocks(net: Network) -> None:
    """Recompute each repeated block in the backward pass instead of keeping its activations.

    All but the selective scans, whose results are small beside what they cost.
    """
    for block in net.blocks():
        # In place of a wrapper, which would change the names in the state dict.
        block.forward = _checkpointed(block.forward)


def _checkpointed(forward: Callable[..., Any]) -> Callable[..., Any]:
    scan = torch.ops.lit_restore.selective_scan.default
    kept = partial(create_selective_checkpoint_contexts, [scan])

    # A function of its own: what is compiled sees through it, and not through a partial.
    def recomputed(*args: Any, **options: Any) -> Any:
        return checkpoint(forward, *args, use_reentrant=False, context_fn=kept, **options)

    return recomputed


def compile_blocks(net: Network) -> None:
    """`torch.compile` each repeated block in place: the state dict keeps its names.

    Equal blocks share one compilation, which takes a fraction of the whole network's.
    """
    for block in net.blocks():
        block.compile()


def shard(net: nn.Module, mesh: DeviceMesh) -> None:
    """FSDP2: each rank of `mesh` holds a part of every parameter, gathered block by block.

    All blocks, and the rest with the root, are given up again after their forward pass: a root
    kept gathered would in an averaged twin be forwarded with old weights.
    """
    from torch.distributed.fsdp import fully_shard

    for block in net.blocks() if isinstance(net, Network) else []:
        fully_shard(block, mesh=mesh, reshard_after_forward=True)
    fully_shard(net, mesh=mesh, reshard_after_forward=True)
