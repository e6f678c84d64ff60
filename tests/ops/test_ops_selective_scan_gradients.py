"""Derivatives of the selective scan: first, forward, second; and what has none."""

from __future__ import annotations

import pytest
import torch
from scan_cases import BACKENDS, CPU, Case, draw, gradients, plain, relative
from torch import Tensor
from torch.autograd import forward_ad

from lit_restore.errors import UserError
from lit_restore.ops import selective_scan
from lit_restore.ops.selective_scan import dispatch

KERNELS = ["loop", CPU]


@pytest.fixture
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """ "loop": the operator with the reference's kernel, as on a machine without a compiler."""
    name: str = request.param
    if name != "loop":
        return name
    monkeypatch.setattr(dispatch, "BACKENDS", {dispatch.REFERENCE: ()})
    return "auto"


@pytest.mark.parametrize("backend", ["reference", *KERNELS], indirect=True)
@pytest.mark.parametrize("missing", [(), ("D", "z", "dt_bias")])
def test_gradcheck(backend: str, missing: tuple[str, ...]) -> None:
    case = draw(batch=2, length=18, channels=3, states=2).without(*missing)
    present = [t is not None for t in case.args]

    def scan(*given: Tensor) -> Tensor:
        left = iter(given)
        args = [next(left) if here else None for here in present]
        return selective_scan(*args, index=torch.arange(17, -1, -1), backend=backend)  # type: ignore[arg-type]

    assert torch.autograd.gradcheck(scan, case.given, fast_mode=True)


@pytest.mark.parametrize("backend", KERNELS, indirect=True)
@pytest.mark.parametrize(
    ("length", "channels", "states"), [(37, 40, 16), (16, 16, 16), (33, 5, 33), (5, 300, 4)]
)
def test_float32_gradients_are_those_of_float64(
    backend: str, length: int, channels: int, states: int
) -> None:
    case = draw(length=length, channels=channels, states=states)
    low = case.to(torch.float32)
    true = gradients(plain(case)[0], case.given)
    found = gradients(selective_scan(*low.args, backend=backend), low.given)
    errors = [relative(a, b) for a, b in zip(found, true, strict=True)]
    assert max(errors) < 5e-6, errors


@pytest.mark.parametrize("backend", KERNELS, indirect=True)
def test_gradients_of_shared_and_grouped_b_and_c(backend: str) -> None:
    case = draw(channels=6, shared=3)
    index = torch.randperm(21, generator=torch.Generator().manual_seed(3))
    found = gradients(selective_scan(*case.args, index=index, backend=backend), case.given)
    true = gradients(selective_scan(*case.args, index=index, backend="reference"), case.given)
    assert max(relative(a, b) for a, b in zip(found, true, strict=True)) < 1e-12


@pytest.mark.parametrize("backend", KERNELS, indirect=True)
def test_gradients_above_the_threshold_of_softplus_and_without_it(backend: str) -> None:
    case = draw(length=9)
    with torch.no_grad():
        case.dt.mul_(25)
    for softplus in (True, False):
        if not softplus:
            case.dt = case.dt.detach().abs().requires_grad_()
        y = selective_scan(*case.args, softplus, backend=backend)
        true = plain(case, softplus=softplus)[0]
        pairs = zip(gradients(y, case.given), gradients(true, case.given), strict=True)
        assert max(relative(a, b) for a, b in pairs) < 1e-12


@pytest.mark.parametrize("backend", ["reference", *KERNELS], indirect=True)
def test_expanded_gradients_and_views_are_no_trap(backend: str) -> None:
    case = draw()
    found = torch.autograd.grad(selective_scan(*case.args, backend=backend).sum(), case.given)
    true = torch.autograd.grad(plain(case)[0].sum(), case.given)
    assert max(relative(a, b) for a, b in zip(found, true, strict=True)) < 1e-12


@pytest.mark.parametrize("backend", ["reference", *KERNELS], indirect=True)
def test_last_state_has_no_gradient(backend: str) -> None:
    y, last = selective_scan(*draw().args, return_last_state=True, backend=backend)
    assert y.requires_grad
    assert not last.requires_grad


@pytest.mark.parametrize("backend", KERNELS, indirect=True)
def test_half_precision_gradients_have_the_types_of_the_arguments(backend: str) -> None:
    case, full = draw().to(torch.bfloat16), draw().to(torch.float32)
    case.A, case.D, case.dt_bias = full.A, full.D, full.dt_bias
    found = gradients(selective_scan(*case.args, backend=backend), case.given)
    assert [g.dtype for g in found] == [t.dtype for t in case.given]
    exact = case.to(torch.float64)
    true = gradients(selective_scan(*exact.args, backend="reference"), exact.given)
    assert max(relative(a, b) for a, b in zip(found, true, strict=True)) < 2e-2


@pytest.mark.parametrize("backend", BACKENDS)
def test_jvp_is_the_directional_derivative(backend: str) -> None:
    case, way = draw(), draw(seed=5)
    points, tangents = tuple(case.given), tuple(t.detach() for t in way.given)

    def scan(*args: Tensor) -> Tensor:
        return selective_scan(*args, backend=backend)

    _, tangent = torch.func.jvp(scan, points, tangents)
    eps = 1e-6
    shifted = [
        plain(Case(*(p + sign * eps * t for p, t in zip(points, tangents, strict=True))))[0]
        for sign in (1, -1)
    ]
    assert tangent.abs().max() > 0.1
    assert relative(tangent, (shifted[0] - shifted[1]) / (2 * eps)) < 1e-7
    with forward_ad.dual_level():
        dual = selective_scan(
            forward_ad.make_dual(points[0], tangents[0]), *points[1:], backend=backend
        )
        assert forward_ad.unpack_dual(dual).tangent is not None


@pytest.mark.parametrize("backend", BACKENDS)
def test_jvp_of_a_gradient_sees_the_tangent(backend: str) -> None:
    case = draw(length=5)
    rest = [t.detach() for t in case.args[1:] if t is not None]

    def slope(u: Tensor) -> Tensor:
        return torch.func.grad(lambda v: selective_scan(v, *rest, backend=backend).pow(2).sum())(u)

    u = case.u.detach()
    _, tangent = torch.func.jvp(slope, (u,), (torch.ones_like(u),))
    eps = 1e-6
    assert relative(tangent, (slope(u + eps) - slope(u - eps)) / (2 * eps)) < 1e-7


@pytest.mark.parametrize("backend", ["reference"])
def test_reference_has_second_derivatives(backend: str) -> None:
    case = draw(batch=1, length=4, channels=2, states=2)

    def scan(*args: Tensor) -> Tensor:
        return selective_scan(*args, backend=backend)

    assert torch.autograd.gradgradcheck(scan, case.given, fast_mode=True)


@pytest.mark.parametrize("backend", KERNELS, indirect=True)
def test_second_derivatives_of_the_operator_are_refused_in_a_line(backend: str) -> None:
    case = draw()
    y = selective_scan(*case.args, backend=backend)
    (grad,) = torch.autograd.grad(y.sum(), case.u, create_graph=True)
    with pytest.raises(UserError, match='say backend="reference"'):
        grad.sum().backward()


@pytest.mark.parametrize("backend", ["reference", *KERNELS], indirect=True)
def test_vmap_is_a_loop(backend: str) -> None:
    cases = [draw(seed=k) for k in range(3)]
    index = torch.arange(20, -1, -1)
    stacked = [torch.stack(each).detach() for each in zip(*(c.args for c in cases), strict=True)]

    def scan(*args: Tensor) -> Tensor:
        return selective_scan(*args, index=index, backend=backend)

    found = torch.vmap(scan)(*stacked)
    true = torch.stack([scan(*c.args) for c in cases])
    assert relative(found, true) < 1e-13
    shared = [*stacked[:2], cases[0].A.detach(), *stacked[3:]]
    found = torch.vmap(scan, in_dims=(0, 0, None, 0, 0, 0, 0, 0))(*shared)
    true = torch.stack([scan(*c.args[:2], cases[0].A, *c.args[3:]) for c in cases])
    assert relative(found, true) < 1e-13


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("groups", [None, 2])
def test_vmap_over_the_gradient_of_the_output_alone(backend: str, groups: int | None) -> None:
    """What is not mapped, the kept states too, is expanded: strides of 0."""
    c = draw(length=18, groups=groups)
    y = selective_scan(*c.args, backend=backend)
    each = torch.stack([torch.randn_like(y) for _ in range(3)])

    def pulled(grad: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(y, c.given, grad, retain_graph=True)

    found = torch.vmap(pulled)(each)
    for mine, theirs in zip(found, zip(*map(pulled, each), strict=True), strict=True):
        assert relative(mine, torch.stack(theirs)) < 1e-12


@pytest.mark.parametrize("backend", ["reference", *KERNELS], indirect=True)
def test_vmap_of_grad_has_a_gradient_of_shared_parameters_for_each(backend: str) -> None:
    cases = [draw(seed=k) for k in range(3)]
    u = torch.stack([c.u.detach() for c in cases])
    rest = [t.detach() for t in cases[0].args[1:] if t is not None]

    def loss(u: Tensor, A: Tensor) -> Tensor:
        return selective_scan(u, rest[0], A, *rest[2:], backend=backend).pow(2).sum()

    found = torch.vmap(torch.func.grad(loss, argnums=(0, 1)), in_dims=(0, None))(u, rest[1])
    for k in range(3):
        leaves = [t.clone().requires_grad_() for t in (u[k], rest[1])]
        for a, b in zip(found, torch.autograd.grad(loss(*leaves), leaves), strict=True):
            assert relative(a[k], b) < 1e-12


@pytest.mark.parametrize("backend", KERNELS, indirect=True)
def test_batched_gradients_are_a_loop(backend: str) -> None:
    case = draw()
    y = selective_scan(*case.args, index=torch.arange(20, -1, -1), backend=backend)
    weights = torch.randn(3, *y.shape, dtype=y.dtype, generator=torch.Generator().manual_seed(2))
    found = torch.autograd.grad(y, case.given, weights, is_grads_batched=True, retain_graph=True)
    for k in range(3):
        true = torch.autograd.grad(y, case.given, weights[k], retain_graph=True)
        assert max(relative(a[k], b) for a, b in zip(found, true, strict=True)) < 1e-12
