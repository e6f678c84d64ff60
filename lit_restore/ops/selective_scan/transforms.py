"""What PyTorch is doing around an op: autocast, forward-mode AD, vmap."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._C import _functorch as functorch
from torch.autograd import forward_ad


def lowered(x: Tensor, device: str) -> Tensor:
    """Cast to the type of autocast, where that is on; float64 stays, as with PyTorch's own ops.

    Args:
        x: any shape, floating point.
        device: type of device whose autocast counts.
    """
    # The meta device has no autocast, and PyTorch raises when asked.
    if x.dtype == torch.float64 or device == "meta" or not torch.is_autocast_enabled(device):
        return x
    return x.to(torch.get_autocast_dtype(device))


def only_plain() -> bool:
    """Whether only plain PyTorch can be differentiated as is being asked.

    So it is in forward mode (`torch.func.jvp`, `forward_ad.dual_level`), where custom operators
    have zero tangents without a word, and in `torch.func.grad`, which they do not work in. Asked
    of the levels and not of the tensors, whose tangents other transforms hide.
    """
    if forward_ad._current_level >= 0:
        return True
    if torch.compiler.is_compiling():
        return False
    stack = functorch.get_interpreter_stack() or ()
    return any(level.key() != functorch.TransformType.Vmap for level in stack)


def vmap_as_groups(op: Any, inputs: Sequence[int], outputs: Sequence[int]) -> None:
    """Have `torch.vmap` of an op be one call of it, with the mapped axis before its groups.

    Before the groups and not the batch, as parameters may be mapped too, and the gradients of those
    that are not are wanted for each entry.

    Args:
        op: its tensors come first, its other arguments after them.
        inputs: which axis of each tensor holds the groups.
        outputs: the same of the results.
    """

    def rule(info: Any, in_dims: Sequence[int | None], *args: Any) -> tuple[Any, Any]:
        size = info.batch_size
        folded = [_fold(*each, size) for each in zip(args, in_dims, inputs, strict=False)]
        found = op(*folded, *args[len(inputs) :])
        several = found if isinstance(found, tuple) else (found,)
        # Absent gradients are empty and have no groups.
        at = [axis if x.ndim > 1 else None for x, axis in zip(several, outputs, strict=True)]
        split = [
            x if axis is None else x.unflatten(axis, (size, x.shape[axis] // size))
            for x, axis in zip(several, at, strict=True)
        ]
        return (tuple(split), tuple(at)) if isinstance(found, tuple) else (split[0], at[0])

    op.register_vmap(rule)


def _fold(x: Tensor | None, mapped: int | None, axis: int, size: int) -> Tensor | None:
    """A mapped axis, or `size` times the same, merged into the groups at `axis`."""
    if x is None:
        return None
    if mapped is None:
        shape = (*x.shape[:axis], size, *x.shape[axis:])
        return x.unsqueeze(axis).expand(shape).flatten(axis, axis + 1)
    return x.movedim(mapped, axis).flatten(axis, axis + 1)
