"""The scan as PyTorch operators: `lit_restore::selective_scan` and its backward.

Opaque to `torch.compile` and `torch.export`, which neither trace a loop of L steps nor break the
graph at it. Forward and backward are operators of their own, so that neither is Python to AOT
autograd. Forward-mode AD knows no custom operators (it would find zero tangents), and the backward
cannot be differentiated: the caller sees to the first, the second raises.
"""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor
from torch.library import custom_op

from lit_restore.errors import UserError
from lit_restore.ops.selective_scan.arguments import Kernel, Scan
from lit_restore.ops.selective_scan.checks import check_values
from lit_restore.ops.selective_scan.dispatch import kernel
from lit_restore.ops.selective_scan.transforms import vmap_as_groups

PACKAGE = "lit_restore.ops.selective_scan"
NAME = "lit_restore::selective_scan"
_ARGUMENTS = (
    "Tensor u, Tensor dt, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, Tensor? dt_bias, "
    "Tensor? index, bool dt_softplus, str backend"
)
Optional = Tensor | None
Gradients = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def _kernel(backend: str, s: Scan) -> Kernel:
    return cast(Kernel, kernel(PACKAGE, backend, s.u.device, s))


@custom_op(NAME, mutates_args=(), schema=f"({_ARGUMENTS}, bool save) -> (Tensor, Tensor, Tensor)")
def scan_op(
    u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Optional, z: Optional,
    dt_bias: Optional, index: Optional, dt_softplus: bool, backend: str, save: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """y, the last state and the kept states; arguments as in `Scan`."""
    s = Scan(u, dt, A, B, C, D, z, dt_bias, index, dt_softplus)
    check_values(s)
    return _kernel(backend, s).forward(s, save=save)


@custom_op(
    f"{NAME}_backward",
    mutates_args=(),
    schema=f"(Tensor grad, Tensor states, {_ARGUMENTS}) -> ({', '.join(['Tensor'] * 8)})",
)
def scan_backward_op(
    grad: Tensor, states: Tensor, u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor,
    D: Optional, z: Optional, dt_bias: Optional, index: Optional, dt_softplus: bool,
    backend: str,
) -> Gradients:  # fmt: skip
    """The eight gradients, those of absent arguments empty."""
    s = Scan(u, dt, A, B, C, D, z, dt_bias, index, dt_softplus)
    found = _kernel(backend, s)
    if states.shape[1] == 0:  # `save` was not foreseen
        states = found.forward(s, save=True)[2]
    # Under vmap what is not mapped is expanded.
    g = found.backward(s, grad.contiguous(), states.contiguous())
    none = u.new_empty(0)
    D_, z_, bias_ = (none.clone() if t is None else t for t in (g.D, g.z, g.dt_bias))
    return g.u, g.dt, g.A, g.B, g.C, D_, z_, bias_


@scan_op.register_fake
def _(
    u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Optional, z: Optional,
    dt_bias: Optional, index: Optional, dt_softplus: bool, backend: str, save: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    s = Scan(u, dt, A, B, C, D, z, dt_bias, index, dt_softplus)
    last = u.new_empty(s.state_shape, dtype=s.state_dtype)
    return u.new_empty(u.shape), last, last.new_empty(s.states_shape(save=save))


@scan_backward_op.register_fake
def _(
    grad: Tensor, states: Tensor, u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor,
    D: Optional, z: Optional, dt_bias: Optional, index: Optional, dt_softplus: bool,
    backend: str,
) -> Gradients:  # fmt: skip
    def like(t: Optional) -> Tensor:
        return u.new_empty(0) if t is None else t.new_empty(t.shape)

    return like(u), like(dt), like(A), like(B), like(C), like(D), like(z), like(dt_bias)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    *tensors, ctx.dt_softplus, ctx.backend, _ = inputs
    ctx.save_for_backward(output[2], *tensors)


def _differentiate(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Optional, ...]:
    """Only y has a gradient; the states are not differentiable."""
    states, *tensors = ctx.saved_tensors
    found = scan_backward_op(grad.contiguous(), states, *tensors, ctx.dt_softplus, ctx.backend)
    given = [g if t is not None else None for g, t in zip(found, tensors, strict=False)]
    return (*given, None, None, None, None)


def _setup_twice(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    pass


def _refuse_twice(ctx: Any, *grads: Tensor) -> None:
    raise UserError(
        'no second derivative with this backend; say backend="reference"', where="selective_scan"
    )


scan_op.register_autograd(_differentiate, setup_context=_setup)
scan_backward_op.register_autograd(_refuse_twice, setup_context=_setup_twice)

# u, dt, A, B, C, D, z, dt_bias, index
_GROUPS = (2, 2, 0, 2, 2, 0, 2, 0, 0)
vmap_as_groups(scan_op, _GROUPS, (2, 1, 2))
vmap_as_groups(scan_backward_op, (2, 2, *_GROUPS), _GROUPS[:-1])
