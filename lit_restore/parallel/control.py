"""Small agreements between ranks, on the CPU and beside the training's own collectives."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist


class Control:
    """Gathers and broadcasts plain objects over a gloo group of its own.

    Each thread that talks needs one: messages of a group are told apart by their order only.
    Made by all ranks in the same order, once the process group is up; with one process it does
    nothing.

    Raises:
        RuntimeError: from any call, when another rank is gone or too late.
    """

    def __init__(self) -> None:
        self._group: Any = None
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            self._group = dist.new_group(backend="gloo")

    @property
    def world(self) -> int:
        """Number of ranks."""
        return 1 if self._group is None else int(dist.get_world_size(self._group))

    @property
    def rank(self) -> int:
        """The rank of this process."""
        return 0 if self._group is None else int(dist.get_rank())

    def gather(self, part: Any) -> list[Any]:
        """What each rank gave, in order of rank, on all ranks."""
        if self._group is None:
            return [part]
        parts: list[Any] = [None] * self.world
        dist.all_gather_object(parts, part, group=self._group)
        return parts

    def from_first(self, value: Any) -> Any:
        """What rank 0 gave, on all ranks."""
        if self._group is None:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self._group)
        return box[0]
