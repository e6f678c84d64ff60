"""`selective_scan`: arguments checked and brought to one form, and the way to compute it chosen."""

from __future__ import annotations

from typing import Literal, overload

import torch
from torch import Tensor

from lit_restore.ops.selective_scan import reference
from lit_restore.ops.selective_scan.arguments import Scan
from lit_restore.ops.selective_scan.checks import check_values
from lit_restore.ops.selective_scan.dispatch import REFERENCE, requested
from lit_restore.ops.selective_scan.op import scan_op
from lit_restore.ops.selective_scan.shapes import grouped
from lit_restore.ops.selective_scan.transforms import lowered, only_plain


@overload
def selective_scan(
    u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None = None,
    z: Tensor | None = None, dt_bias: Tensor | None = None, dt_softplus: bool = True,
    index: Tensor | None = None, return_last_state: Literal[False] = False, *,
    backend: str | None = None,
) -> Tensor: ...  # fmt: skip
@overload
def selective_scan(
    u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None = None,
    z: Tensor | None = None, dt_bias: Tensor | None = None, dt_softplus: bool = True,
    index: Tensor | None = None, *, return_last_state: Literal[True],
    backend: str | None = None,
) -> tuple[Tensor, Tensor]: ...  # fmt: skip
def selective_scan(
    u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None = None,
    z: Tensor | None = None, dt_bias: Tensor | None = None, dt_softplus: bool = True,
    index: Tensor | None = None, return_last_state: bool = False, *,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:  # fmt: skip
    """Mamba's selective scan, token-major, along any order of the tokens.

    With delta = softplus(dt + dt_bias) (softplus is the identity above 20), in the order of index:

        h_t = exp(delta_t A) h_{t-1} + delta_t B_t u_t,    h_{-1} = 0
        y_t = (<C_t, h_t> + D u_t) silu(z_t)

    (Gu and Dao, arXiv 2312.00752, eq. 2 with the Euler rule for B.) The state is float32, float64
    for float64 inputs; y is rounded once. A NaN reaches what the recurrence makes of it: one in u
    or dt, its channel from there on; in B, its group from there on; in C or z, its own token.

    Args:
        u: the input, (batch, L, D), or (batch, L, G, D) for G scans of their own in one call.
            Strided views are not copied while neighbouring channels are neighbours in memory.
        dt: step sizes before bias and softplus, shaped as u.
        A: (D, N) or (G, D, N), real and negative: -exp(A_log). Not checked to be negative.
        B: (batch, L, N) or (batch, L, G, N). For u without groups also (batch, L, K, N): channels
            k D/K … (k+1) D/K - 1 use B[:, :, k].
        C: shaped as B.
        D: the skip, (D) or (G, D).
        z: the gate, shaped as u.
        dt_bias: shaped as D.
        dt_softplus: False to take dt + dt_bias as it is.
        index: int32 or int64, a permutation of the tokens (L) or one for each group (G, L): step t
            reads row index[t] of u, dt, z, B and C and writes row index[t] of y. None: as they
            lie. That it is a permutation is checked on the CPU, elsewhere with
            ``$LIT_RESTORE_SCAN_CHECK``, which refuses NaN too.
        return_last_state: also return h after the last step. It has no gradient.
        backend: "auto" or one of `dispatch.BACKENDS`; None for the innermost `using`'s, else that
            of `$LIT_RESTORE_SCAN`, else the default (`set_backend`). "reference" is plain PyTorch
            with all its derivatives, the others have first ones. Forward-mode AD and
            `torch.func.grad` take it whatever is named.

    Returns:
        y, shaped and typed as u (under autocast in its lower type, as a linear layer); with
        `return_last_state` also h (batch, D, N) or (batch, G, D, N).

    Raises:
        UserError: a shape, type or index that does not fit; an unknown or unavailable backend.
    """
    dt_, B_, C_ = (lowered(t, u.device.type) for t in (dt, B, C))
    z_ = None if z is None else lowered(z, u.device.type)
    s = grouped(lowered(u, u.device.type), dt_, A, B_, C_, D, z_, dt_bias, index, dt_softplus)
    y, last = _compute(s, requested(backend))
    y = y.reshape(u.shape)
    if not return_last_state:
        return y
    return y, last.reshape(u.shape[0], *u.shape[2:], A.shape[-1])


def _compute(s: Scan, backend: str) -> tuple[Tensor, Tensor]:
    """What is returned, by the reference where only that has the derivatives asked for."""
    plain = backend == REFERENCE and not torch.compiler.is_compiling()
    if plain or only_plain():
        check_values(s)
        return reference.scan(s)
    tensors = (s.u, s.dt, s.A, s.B, s.C, s.D, s.z, s.dt_bias)
    save = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    y, last, _ = scan_op(*tensors, s.index, s.dt_softplus, backend, save)
    return y, last.detach()
