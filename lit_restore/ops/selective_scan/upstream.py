"""The selective scan with mamba-ssm's signature: channel-major, for parity and ported code."""

from __future__ import annotations

import torch
from torch import Tensor

from lit_restore.errors import UserError
from lit_restore.ops.selective_scan.scan import selective_scan


def selective_scan_fn(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None = None,
    z: Tensor | None = None, delta_bias: Tensor | None = None, delta_softplus: bool = False,
    return_last_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:  # fmt: skip
    """`selective_scan` in the layout of ``mamba_ssm.ops.selective_scan_interface``.

    Autocast does not touch it, as it does not touch theirs.

    Args:
        u: (batch, D, L).
        delta: (batch, D, L).
        A: (D, N), real.
        B: (D, N) for one that does not change over time, (batch, N, L), or (batch, G, N, L) for G
            groups of neighbouring channels. A constant one costs as if every channel had its own.
        C: as B, in any combination.
        D: (D).
        z: (batch, D, L).
        delta_bias: (D).
        delta_softplus: as `selective_scan`'s ``dt_softplus``.
        return_last_state: also return the last state (batch, D, N), which has no gradient.

    Returns:
        y (batch, D, L) in the type of u, a view of token-major memory.

    Raises:
        UserError: a shape that does not fit; a complex A, B or C.
    """
    for name, t in {"A": A, "B": B, "C": C}.items():
        if t.is_complex():
            raise UserError(f"{name} is complex; only real numbers scan", where="selective_scan_fn")
    groups = _groups(u, B, C)
    _check(u, delta=delta, A=A, D=D, z=z, delta_bias=delta_bias)
    parts = (groups, u.shape[1] // groups)
    skip, bias = (None if t is None else torch.unflatten(t, 0, parts) for t in (D, delta_bias))
    with torch.autocast(u.device.type, enabled=False):
        y, last = selective_scan(
            torch.unflatten(u.mT, -1, parts), torch.unflatten(delta.mT, -1, parts),
            torch.unflatten(A, 0, parts),
            _for_groups(B, u, groups), _for_groups(C, u, groups), skip,
            None if z is None else torch.unflatten(z.mT, -1, parts), bias, delta_softplus,
            return_last_state=True,
        )  # fmt: skip
    y = y.flatten(2).mT
    return (y, last.flatten(1, 2)) if return_last_state else y


def _groups(u: Tensor, B: Tensor, C: Tensor) -> int:
    """Groups of channels with B and C of their own: all channels where one does not change."""
    if u.ndim != 3:
        raise UserError(f"u is {tuple(u.shape)}, not (batch, D, L)", where="selective_scan_fn")
    sizes = [{2: u.shape[1], 3: 1, 4: t.shape[1]}.get(t.ndim, 0) for t in (B, C)]
    if not all(size and max(sizes) % size == 0 for size in sizes) or u.shape[1] % max(sizes):
        raise UserError(
            f"B {tuple(B.shape)} and C {tuple(C.shape)} do not fit u {tuple(u.shape)}",
            where="selective_scan_fn",
        )
    return max(sizes)


def _check(u: Tensor, **others: Tensor | None) -> None:
    """Refuse what does not fit u; B, C and the number of states are checked by the scan itself."""
    channels = u.shape[1]
    for name, t in others.items():
        shape = {"delta": tuple(u.shape), "z": tuple(u.shape)}.get(name, (channels,))
        if t is not None and (t.shape[:1] if name == "A" and t.ndim == 2 else t.shape) != shape:
            expected = f"({channels}, N)" if name == "A" else str(shape)
            raise UserError(
                f"{name} is {tuple(t.shape)}, not {expected}", where="selective_scan_fn"
            )


def _for_groups(t: Tensor, u: Tensor, groups: int) -> Tensor:
    """A B or C as (batch, L, groups, N)."""
    if t.ndim == 2:
        return t.expand(u.shape[0], u.shape[2], *t.shape)
    if t.ndim == 3:
        return t.mT.unsqueeze(2).expand(-1, -1, groups, -1)
    repeats = groups // t.shape[1]
    return t.permute(0, 3, 1, 2).repeat_interleave(repeats, 2)
