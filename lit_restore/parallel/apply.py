"""Compilation and parallelism from outside, in one stated order.

Memory format → LoRA → activation checkpointing → compile, block by block → DDP or FSDP2. Memory
format and compilation are here so far; DDP is Lightning's own strategy.
"""

from __future__ import annotations

import torch

from lit_restore.networks.base import Network


def use_channels_last(net: Network) -> None:
    """Lay convolution kernels out as images are decoded: faster on CPUs and on tensor cores."""
    net.to(memory_format=torch.channels_last)


def compile_blocks(net: Network) -> None:
    """`torch.compile` each repeated block in place: the state dict keeps its names.

    Equal blocks share one compilation, which takes a fraction of the whole network's.
    """
    for block in net.blocks():
        block.compile()
