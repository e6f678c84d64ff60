"""Compilation and parallelism from outside, in one stated order.

LoRA → activation checkpointing → compile, block by block → DDP or FSDP2. Only compilation is here
so far; DDP is Lightning's own strategy.
"""

from __future__ import annotations

from lit_restore.networks.base import Network


def compile_blocks(net: Network) -> None:
    """`torch.compile` each repeated block in place: the state dict keeps its names.

    Equal blocks share one compilation, which takes a fraction of the whole network's.
    """
    for block in net.blocks():
        block.compile()
