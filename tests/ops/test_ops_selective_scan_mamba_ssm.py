"""The backend that calls mamba-ssm, with its function stood in for by our adapter's formula."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from scan_cases import draw, gradients, relative
from torch import Tensor
from triton_checks import case

from lit_restore.errors import UserError
from lit_restore.ops import selective_scan
from lit_restore.ops.selective_scan import dispatch, mamba_ssm, reference, using
from lit_restore.ops.selective_scan.arguments import Scan
from lit_restore.ops.selective_scan.upstream import selective_scan_fn

NAME = "mamba_ssm.ops.selective_scan_interface"


def _formula(given: tuple[Tensor, ...], like: list[Tensor | None], softplus: bool) -> Tensor:
    each = iter(given)
    args = [None if t is None else next(each) for t in like]
    y = selective_scan_fn(*args, softplus)  # type: ignore[arg-type]
    assert isinstance(y, Tensor)
    return y


@pytest.fixture
def stood_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, Any]]]:
    """The calls that it got, in a process where mamba-ssm "is installed"."""
    calls: list[dict[str, Any]] = []

    class StandIn(torch.autograd.Function):
        """As theirs: a function of its own to autograd, which sees nothing inside it."""

        @staticmethod
        def forward(ctx: Any, softplus: bool, *args: Tensor | None) -> Any:
            ctx.softplus = softplus
            ctx.save_for_backward(*args)
            with using("reference"):
                return selective_scan_fn(*args, softplus, True)  # type: ignore[arg-type]

        @staticmethod
        def backward(ctx: Any, grad: Tensor, _: Tensor) -> Any:
            with torch.enable_grad():
                leaves = [
                    None if t is None else t.detach().double().requires_grad_()
                    for t in ctx.saved_tensors
                ]
                true = torch.func.vjp(
                    lambda *given: _formula(given, leaves, ctx.softplus),
                    *(t for t in leaves if t is not None),
                )[1](grad.double())
            found = iter(true)
            return None, *(None if t is None else next(found).float() for t in leaves)

    def stand_in(
        u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None,
        z: Tensor | None, bias: Tensor | None, delta_softplus: bool, return_last_state: bool,
    ) -> Any:  # fmt: skip
        assert return_last_state
        calls.append({"u": u, "delta": delta, "A": A, "B": B, "z": z})
        return StandIn.apply(delta_softplus, u, delta, A, B, C, D, z, bias)

    for name in ("mamba_ssm", "mamba_ssm.ops"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, NAME, SimpleNamespace(selective_scan_fn=stand_in))
    mamba_ssm._function.cache_clear()
    yield calls
    mamba_ssm._function.cache_clear()


@pytest.mark.parametrize(
    "given",
    [
        {"states": 4, "length": 9, "groups": 2, "order": "random"},
        {"states": 3, "length": 5, "drop": ("D", "z", "dt_bias")},
        {"states": 4, "length": 6, "shared": 5, "softplus": False},
    ],
)
def test_forward_and_gradients_through_its_layout(
    stood_in: list[dict[str, Any]], given: dict[str, Any]
) -> None:
    s, true = case(**given)
    assert mamba_ssm.unavailable() is None
    y, last, kept = mamba_ssm.forward(s, save=True)
    y_, last_, kept_ = reference.forward(true, save=True)
    assert relative(y, y_) < 1e-5
    assert relative(last, last_) < 1e-5
    assert kept.shape == kept_.shape
    grad = torch.randn_like(y)
    found = mamba_ssm.backward(s, grad, kept)
    expected = reference.backward(true, grad.double(), kept_)
    for name in ("u", "dt", "A", "B", "C", "D", "z", "dt_bias"):
        mine, theirs = getattr(found, name), getattr(expected, name)
        assert (mine is None) == (theirs is None), name
        if mine is not None:
            assert relative(mine, theirs) < 1e-5, name
            assert mine.is_contiguous(), name


def test_gradients_through_the_operator(
    stood_in: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Below autograd, where an operator is, nothing is recorded but a `Function`."""
    monkeypatch.setitem(dispatch.BACKENDS, "mamba_ssm", ("cpu",))
    c = draw(length=7, groups=2).to(torch.float32)
    index = torch.randperm(7)
    y = selective_scan(*c.args, index=index, backend="mamba_ssm")
    true = c.to(torch.float64)
    wanted = selective_scan(*true.args, index=index, backend="reference")
    for mine, theirs in zip(gradients(y, c.given), gradients(wanted, true.given), strict=True):
        assert relative(mine, theirs) < 1e-5


def test_it_gets_one_type_and_contiguous_channel_major_tensors(
    stood_in: list[dict[str, Any]],
) -> None:
    s, _ = case(states=4, length=6, groups=2, dtype="bfloat16")
    mixed = Scan(s.u, s.dt.float(), *(getattr(s, n) for n in ("A", "B", "C", "D", "z")), s.dt_bias,
                 None, True)  # fmt: skip
    mamba_ssm.forward(mixed, save=False)
    (call,) = stood_in
    assert {call[name].dtype for name in ("u", "delta", "B", "z")} == {torch.bfloat16}
    assert call["A"].dtype == torch.float32
    assert call["u"].shape == (2, 10, 6)
    assert call["B"].shape == (2, 2, 4, 6)
    assert all(t.is_contiguous() for t in call.values())


def test_without_it_the_line_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, NAME, None)
    mamba_ssm._function.cache_clear()
    why = mamba_ssm.unavailable()
    mamba_ssm._function.cache_clear()
    assert why is not None
    assert why.startswith("mamba-ssm cannot be imported")
    assert "\n" not in why


def test_it_is_never_chosen_unasked(
    stood_in: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "BACKENDS", {"mamba_ssm": ("cuda",), dispatch.REFERENCE: ()})
    package, device = "lit_restore.ops.selective_scan", torch.device("cuda")
    s, _ = case(states=2, length=3)
    assert dispatch.kernel(package, "auto", device, s) is reference
    assert dispatch.kernel(package, "mamba_ssm", device, s) is mamba_ssm
    with pytest.raises(UserError, match='"mamba_ssm" does not take this: 257 states'):
        dispatch.kernel(package, "mamba_ssm", device, case(states=257, length=1)[0])
    # An op that it does not have is computed as for "auto".
    conv = dispatch.kernel("lit_restore.ops.causal_conv", "mamba_ssm", device, None)
    assert conv.__name__ == "lit_restore.ops.causal_conv.reference"
