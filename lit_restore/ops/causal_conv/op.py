"""The convolution as PyTorch operators: `lit_restore::causal_conv` and its backward.

Built as those of the selective scan are, for the same reasons.
"""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor
from torch.library import custom_op

from lit_restore.errors import UserError
from lit_restore.ops.causal_conv.arguments import Conv, Kernel
from lit_restore.ops.selective_scan.dispatch import kernel
from lit_restore.ops.selective_scan.shapes import check_permutation
from lit_restore.ops.selective_scan.transforms import vmap_as_groups

PACKAGE = "lit_restore.ops.causal_conv"
NAME = "lit_restore::causal_conv"
_ARGUMENTS = "Tensor x, Tensor weight, Tensor? bias, Tensor? index, bool silu, str backend"
Optional = Tensor | None


def _kernel(backend: str, c: Conv) -> Kernel:
    return cast(Kernel, kernel(PACKAGE, backend, c.x.device, c))


@custom_op(NAME, mutates_args=(), schema=f"({_ARGUMENTS}) -> Tensor")
def conv_op(
    x: Tensor, weight: Tensor, bias: Optional, index: Optional, silu: bool, backend: str
) -> Tensor:
    """y; arguments as in `Conv`."""
    check_permutation(index)
    c = Conv(x, weight, bias, index, silu)
    return _kernel(backend, c).forward(c)


@custom_op(
    f"{NAME}_backward",
    mutates_args=(),
    schema=f"(Tensor grad, {_ARGUMENTS}) -> (Tensor, Tensor, Tensor)",
)
def conv_backward_op(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Optional, index: Optional, silu: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of x, weight and bias, the last empty without one."""
    c = Conv(x, weight, bias, index, silu)
    dx, dweight, dbias = _kernel(backend, c).backward(c, grad.contiguous())
    return dx, dweight, x.new_empty(0) if dbias is None else dbias


@conv_op.register_fake
def _(
    x: Tensor, weight: Tensor, bias: Optional, index: Optional, silu: bool, backend: str
) -> Tensor:
    return x.new_empty(x.shape)


@conv_backward_op.register_fake
def _(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Optional, index: Optional, silu: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    dbias = x.new_empty(0) if bias is None else bias.new_empty(bias.shape)
    return x.new_empty(x.shape), weight.new_empty(weight.shape), dbias


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.silu, ctx.backend = inputs
    ctx.save_for_backward(*tensors)


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Optional, ...]:
    tensors = ctx.saved_tensors
    dx, dweight, dbias = conv_backward_op(grad.contiguous(), *tensors, ctx.silu, ctx.backend)
    return dx, dweight, None if tensors[2] is None else dbias, None, None, None


def _setup_twice(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    pass


def _refuse_twice(ctx: Any, *grads: Tensor) -> None:
    raise UserError(
        'no second derivative with this backend; say backend="reference"', where="causal_conv"
    )


conv_op.register_autograd(_differentiate, setup_context=_setup)
conv_backward_op.register_autograd(_refuse_twice, setup_context=_setup_twice)

# x, weight, bias, index
_GROUPS = (2, 0, 0, 0)
vmap_as_groups(conv_op, _GROUPS, (2,))
vmap_as_groups(conv_backward_op, (2, *_GROUPS), _GROUPS[:-1])
