"""FSDP2 under Lightning: parameters, gradients, optimiser and averages spread over all ranks."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.strategies import ModelParallelStrategy, StrategyRegistry


class FSDP2Strategy(ModelParallelStrategy):
    """Lightning's strategy with all ranks in one data-parallel dimension.

    Its own default takes the number of nodes for that, and the GPUs of a node for tensor
    parallelism. Checkpoints are ours (callbacks.checkpoints), not the strategy's.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False, **options)

    def setup_environment(self) -> None:
        """Size the mesh by the number of ranks."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()


if "fsdp2" not in StrategyRegistry:
    StrategyRegistry.register("fsdp2", FSDP2Strategy, description="FSDP2 over all ranks")
