"""The shapes a selective scan takes, brought to one: groups of channels along an axis."""

from __future__ import annotations

import torch
from torch import Tensor
from torch._C import _functorch as functorch

from lit_restore.errors import UserError
from lit_restore.ops.selective_scan.arguments import Scan


def grouped(
    u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None,
    dt_bias: Tensor | None, index: Tensor | None, dt_softplus: bool,
) -> Scan:  # fmt: skip
    """The arguments of `selective_scan` with an axis of groups everywhere, all as views.

    Raises:
        UserError: names the argument whose shape or type does not fit.
    """
    if u.ndim not in (3, 4) or not u.is_floating_point():
        _refuse("u", u, "(batch, L, D) or (batch, L, G, D)")
    if u.shape[1] == 0:
        raise UserError(f"{tuple(u.shape)} has no tokens to scan", where="u")
    if A.ndim and A.shape[-1] == 0:
        raise UserError(f"{tuple(A.shape)} has no states", where="A")
    given = {"A": A, "dt": dt, "B": B, "C": C, "D": D, "z": z, "dt_bias": dt_bias}
    _check(u.shape, A.shape[-1] if A.ndim else 0, given)
    check_devices(u, **given, index=index)
    if u.ndim == 3:
        # One scan whose channels share B and C in K parts is K scans.
        parts = B.shape[2] if B.ndim == 4 else 1
        u, dt, A = _parted(u, -1, parts), _parted(dt, -1, parts), _parted(A, 0, parts)
        D, z, dt_bias = (None if t is None else _parted(t, -1, parts) for t in (D, z, dt_bias))
        B, C = (t if t.ndim == 4 else t.unsqueeze(2) for t in (B, C))
    rows = row_index(index, u.shape[2], u.shape[1])
    return Scan(u, dt, A, B, C, D, z, dt_bias, rows, dt_softplus)


def _check(u: torch.Size, states: int, given: dict[str, Tensor | None]) -> None:
    """Refuse what does not fit the shape of u."""
    channels = tuple(u[2:])
    rows = (*u[:2], *channels[:-1], states)
    B = given["B"]
    if len(u) == 3 and B is not None and B.ndim == 4 and B.shape[2] and u[2] % B.shape[2] == 0:
        rows = (*u[:2], B.shape[2], states)
    expected = {
        "dt": tuple(u), "z": tuple(u), "A": (*channels, states), "B": rows, "C": rows,
        "D": channels, "dt_bias": channels,
    }  # fmt: skip
    for name, t in given.items():
        if t is not None and (tuple(t.shape) != expected[name] or not t.is_floating_point()):
            _refuse(name, t, str(expected[name]))


def _parted(t: Tensor, axis: int, parts: int) -> Tensor:
    """Channels along `axis` as (parts, channels of a part)."""
    return torch.unflatten(t, axis, (parts, t.shape[axis] // parts))


def row_index(index: Tensor | None, groups: int, length: int) -> Tensor | None:
    """An index (L) or (G, L) as (G, L).

    Raises:
        UserError: of another shape, or not int32 or int64.
    """
    if index is None:
        return None
    if index.dtype not in (torch.int32, torch.int64):
        raise UserError(f"is {index.dtype}, not int32 or int64", where="index")
    if index.shape not in ((length,), (groups, length)):
        raise UserError(
            f"is {tuple(index.shape)}, not ({length},) or ({groups}, {length})", where="index"
        )
    return index.expand(groups, length)


def check_permutation(index: Tensor | None, *, anywhere: bool = False) -> None:
    """Refuse an index that is not a permutation, where looking does not cost a synchronisation.

    Args:
        index: (G, L), or None for the identity.
        anywhere: also where it does: not on the CPU.

    Raises:
        UserError: a row is not a permutation of 0 … L-1.
    """
    if index is None or index.device.type == "meta":
        return
    if index.device.type != "cpu" and not anywhere:
        return
    if torch.compiler.is_compiling() or functorch.is_batchedtensor(index):
        return
    steps = torch.arange(index.shape[-1], dtype=index.dtype, device=index.device)
    if not torch.equal(index.sort(-1).values, steps.expand_as(index)):
        raise UserError(f"is no permutation of 0 … {index.shape[-1] - 1}", where="index")


def check_devices(first: Tensor, **others: Tensor | None) -> None:
    """Refuse tensors on another device: kernels take addresses.

    Raises:
        UserError: names the argument.
    """
    for name, t in others.items():
        if t is not None and t.device != first.device:
            raise UserError(f"is on {t.device}, not {first.device}", where=name)


def _refuse(name: str, t: Tensor, expected: str) -> None:
    raise UserError(
        f"{name} is {t.dtype} {tuple(t.shape)}, not floating-point {expected}",
        where="selective_scan",
    )
