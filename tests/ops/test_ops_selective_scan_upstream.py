"""The adapter with mamba-ssm's signature against that library's formula."""

from __future__ import annotations

import pytest
import torch
from scan_cases import BACKENDS, gradients, relative
from torch import Tensor
from torch.nn import functional as F

from lit_restore.errors import UserError
from lit_restore.ops.selective_scan.upstream import selective_scan_fn

BATCH, D, N, L = 2, 6, 4, 19
SHAPES = {"constant": (D, N), "variable": (BATCH, N, L), "grouped": (BATCH, 3, N, L)}


def formula(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, skip: Tensor, z: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor]:
    """Channel-major, all decays and inputs at once, as the paper writes it."""

    def everywhere(t: Tensor) -> Tensor:
        """(batch, D, L, N)."""
        if t.ndim == 2:
            return t[None, :, None, :].expand(BATCH, D, L, N)
        if t.ndim == 3:
            return t.mT[:, None].expand(BATCH, D, L, N)
        return t.mT.repeat_interleave(D // t.shape[1], 1)

    delta = F.softplus(delta + bias[:, None])
    decay = torch.exp(torch.einsum("bdl,dn->bdln", delta, A))
    inputs = torch.einsum("bdl,bdln,bdl->bdln", delta, everywhere(B), u)
    x = torch.zeros(BATCH, D, N, dtype=u.dtype)
    out = []
    for t in range(L):
        x = decay[:, :, t] * x + inputs[:, :, t]
        out.append(torch.einsum("bdn,bdn->bd", x, everywhere(C)[:, :, t]))
    return (torch.stack(out, -1) + u * skip[:, None]) * F.silu(z), x


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("B", SHAPES)
@pytest.mark.parametrize("C", SHAPES)
def test_adapter_is_upstreams_formula(
    backend: str, B: str, C: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIT_RESTORE_SCAN", backend)
    generator = torch.Generator().manual_seed(0)
    shapes = [(BATCH, D, L), (BATCH, D, L), (D, N), SHAPES[B], SHAPES[C], (D,), (BATCH, D, L), (D,)]
    args = [torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes]
    args[2] = -args[2].exp()
    args = [a.requires_grad_() for a in args]
    found = selective_scan_fn(*args, delta_softplus=True, return_last_state=True)
    true = formula(*args)
    assert relative(found[0], true[0]) < 1e-13
    assert relative(found[1], true[1]) < 1e-13
    pairs = zip(gradients(found[0], args), gradients(true[0], args), strict=True)
    assert max(relative(a, b) for a, b in pairs) < 1e-12


def test_defaults_are_upstreams() -> None:
    """No softplus, one result; autocast does not reach it."""
    u, A, B = torch.rand(1, 2, 5), -torch.rand(2, 3), torch.rand(1, 3, 5)
    with torch.autocast("cpu", torch.bfloat16):
        y = selective_scan_fn(u, u, A, B, B)
    assert isinstance(y, Tensor)
    assert y.dtype == torch.float32
    assert torch.allclose(y[:, :, 0], u[:, :, 0] ** 2 * (B[:, :, 0] ** 2).sum())


def test_complex_and_ill_fitting_arguments_are_refused() -> None:
    u, A, B = torch.rand(1, 4, 5), -torch.rand(4, 3), torch.rand(1, 3, 5)
    with pytest.raises(UserError, match="A is complex"):
        selective_scan_fn(u, u, A.to(torch.complex64), B, B)
    with pytest.raises(UserError, match="do not fit"):
        selective_scan_fn(u, u, A, torch.rand(1, 3, 3, 5), B)
    with pytest.raises(UserError, match="u is"):
        selective_scan_fn(u[0], u, A, B, B)
    with pytest.raises(UserError, match="delta is"):
        selective_scan_fn(u, u.mT, A, B, B)
    with pytest.raises(UserError, match="A is"):
        selective_scan_fn(u, u, A[1:], B, B)
    with pytest.raises(UserError, match="D is"):
        selective_scan_fn(u, u, A, B, B, u[0, 1:, 0])
