"""Several degradations, one after another."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lit_restore.data.degradations.base import KEY, Degradation
from lit_restore.errors import UserError


class Chain(Degradation):
    """All its steps in their order: blur, then a smaller image, then noise, then JPEG.

    Args:
        steps: the degradations, the first first.

    Raises:
        UserError: there is none.
    """

    def __init__(self, steps: list[Degradation]) -> None:
        if not steps:
            raise UserError("lists no degradation", where=f"{KEY}.steps")
        super().__init__(steps=[describe(step) for step in steps])
        self.steps: Sequence[Degradation] = tuple(steps)
        # A class says for all its instances where it runs; a chain's steps say it one by one.
        self.multiple = math.prod(step.multiple for step in steps)
        self.on_device = all(step.on_device for step in steps)  # type: ignore[misc]

    def __call__(self, image: Tensor, generator: torch.Generator) -> Tensor:
        """(C, H, W) → what the last step makes of what the others made; all draw in turn."""
        for step in self.steps:
            image = step(image, generator)
        return image


def describe(degradation: Degradation) -> dict[str, object]:
    """What checkpoints record: ``{"name": short name, "options": {…}}``, all of it JSON."""
    return {"name": type(degradation).__name__, "options": dict(degradation.options)}
