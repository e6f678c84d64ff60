"""What every network here has in common: recorded options, a size multiple, a list of blocks."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor, nn

from lit_restore.errors import UserError

JSONValue: TypeAlias = "bool | int | float | str | list[JSONValue] | dict[str, JSONValue] | None"


class Network(nn.Module):
    """Base of every network: it knows how it was built.

    A subclass writes a plain `__init__` whose arguments are JSON values or tuples of them;
    the values of one call, defaults included, are then found in `options`, and
    `type(net)(**net.options)` builds a network with the same state-dict names and shapes.
    """

    kind: str
    """The class's name, also where FSDP2 has put a class of its own in its place."""
    options: dict[str, JSONValue]
    """The constructor's arguments; tuples have become lists."""
    multiple: int = 1
    """Height and width of the input must be multiples of it (`apply_padded` sees to that)."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "__init__" in cls.__dict__:
            cls.__init__ = _recording(cls.__init__)  # type: ignore[method-assign]

    def blocks(self) -> list[nn.Module]:
        """The repeated blocks, which are compiled, checkpointed and sharded one by one."""
        raise NotImplementedError

    def adapted(self, stored: dict[str, Tensor]) -> dict[str, Tensor]:
        """Another network's weights made to fit this one's, where a fine-tune starts from them.

        Args:
            stored: the state dict of a network of the same class and other options.

        Returns:
            The same, with what can be carried over (to another size, to more classes) in this
            network's shapes; what is still of another shape is left out by the caller.
        """
        return stored


def _recording(init: Callable[..., None]) -> Callable[..., None]:
    signature = inspect.signature(init)

    @functools.wraps(init)
    def record_and_init(self: Network, *args: Any, **kwargs: Any) -> None:
        # A subclass that calls our __init__ records its own arguments, not ours.
        if type(self).__init__ is record_and_init:
            bound = signature.bind(self, *args, **kwargs)
            bound.apply_defaults()
            _, *given = bound.arguments.items()
            object.__setattr__(self, "kind", type(self).__name__)
            object.__setattr__(self, "options", {name: _as_json(name, v) for name, v in given})
        init(self, *args, **kwargs)

    return record_and_init


def _as_json(name: str, value: object) -> JSONValue:
    if isinstance(value, (list, tuple)):
        return [_as_json(name, item) for item in value]
    if isinstance(value, dict):
        return {str(key): _as_json(name, item) for key, item in value.items()}
    assert value is None or isinstance(value, (bool, int, float, str)), (
        f"option {name} is {type(value).__name__}, which JSON does not hold"
    )
    return value


def require_counts(**options: object) -> None:
    """Refuse options that are no positive integers.

    Args:
        **options: name of a constructor's argument → its value.

    Raises:
        UserError: its `where` is the argument's name; who builds the network knows the rest.
    """
    for name, value in options.items():
        if not _is_count(value):
            raise UserError(f"expects a positive integer, got {value!r}", where=name)


def require_lists_of_counts(**options: object) -> None:
    """Refuse options that are no sequences of positive integers, one at least.

    Args:
        **options: name of a constructor's argument → its value.

    Raises:
        UserError: its `where` is the argument's name.
    """
    for name, value in options.items():
        if not isinstance(value, list | tuple) or not value or not all(map(_is_count, value)):
            shown = list(value) if isinstance(value, tuple) else value
            raise UserError(f"expects a list of positive integers, got {shown}", where=name)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def apply_padded(net: nn.Module, x: Tensor, *args: Tensor) -> Tensor:
    """Apply a network to images of any size.

    Pads height and width to `net.multiple` by reflection at the bottom and the right, and crops
    the output back; where both are multiples already, this is `net(x, *args)`.

    Args:
        net: a `Network` whose output has its input's height and width.
        x: images (B, C, H, W).
        *args: passed on as they are (the noise level).

    Returns:
        (B, C', H, W).
    """
    multiple = cast("Network", net).multiple
    height, width = x.shape[-2:]
    rows, columns = -height % multiple, -width % multiple
    if not rows and not columns:
        return cast("Tensor", net(x, *args))
    padded = reflect_to(x, height + rows, width + columns)
    return cast("Tensor", net(padded, *args))[..., :height, :width]


def reflect_to(images: Tensor, height: int, width: int) -> Tensor:
    """Images reflected at the bottom and the right to a size, however small they are.

    Args:
        images: (..., H, W).
        height: at least H.
        width: at least W.

    Returns:
        (..., height, width).
    """
    rows, columns = height - images.shape[-2], width - images.shape[-1]
    if rows:
        images = images[..., _reflected(images.shape[-2], rows, images), :]
    if columns:
        images = images[..., _reflected(images.shape[-1], columns, images)]
    return images


def _reflected(size: int, extra: int, like: Tensor) -> Tensor:
    """Indices 0 … size+extra-1 folded into [0, size) by reflection, however large `extra` is."""
    period = max(1, 2 * size - 2)
    index = torch.arange(size + extra, device=like.device) % period
    return torch.minimum(index, (period - index) % period) if size > 1 else index


def noise_map(sigma: Tensor, like: Tensor) -> Tensor:
    """Noise levels (B,) as a constant map (B, 1, H, W) of the images `like` (B, C, H, W)."""
    size = (len(like), 1, *like.shape[-2:])
    return sigma.to(like).view(-1, 1, 1, 1).expand(size)
