"""The selective scan against its formula, closed forms and the laws of its order."""

from __future__ import annotations

import pytest
import torch
from scan_cases import BACKENDS, Case, draw, plain, relative
from torch.nn import functional as F

from lit_restore.errors import UserError
from lit_restore.ops import selective_scan


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("length", "channels", "states"),
    [(1, 1, 1), (16, 16, 16), (17, 33, 16), (33, 5, 33), (40, 32, 4), (9, 18, 5)],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_scan_is_the_recurrence(
    backend: str, length: int, channels: int, states: int, dtype: torch.dtype
) -> None:
    case = draw(length=length, channels=channels, states=states)
    true = plain(case)
    found = selective_scan(*case.to(dtype).args, return_last_state=True, backend=backend)
    for a, b in zip(found, true, strict=True):
        assert a.dtype == dtype
        assert relative(a, b) < (5e-6 if dtype == torch.float32 else 1e-13)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("missing", ["D", "z", "dt_bias"])
def test_optional_arguments_may_be_absent(backend: str, missing: str) -> None:
    case = draw().without(missing)
    assert relative(selective_scan(*case.args, backend=backend), plain(case)[0]) < 1e-13


@pytest.mark.parametrize("backend", BACKENDS)
def test_steps_above_twenty_and_without_softplus(backend: str) -> None:
    case = draw()
    case.dt = (case.dt * 30).detach()
    assert (case.dt > 20).any()
    assert relative(selective_scan(*case.args, backend=backend), plain(case)[0]) < 1e-13
    case.dt, case.dt_bias = F.softplus(case.dt), None
    found = selective_scan(*case.args, False, backend=backend)
    assert relative(found, plain(case, softplus=False)[0]) < 1e-13


@pytest.mark.parametrize("backend", BACKENDS)
def test_float32_decay_of_any_size_is_the_power(backend: str) -> None:
    """One step of B = 1 and one of delta = dt: the state is exp(dt A), also where it vanishes,
    grows or leaves the range."""
    exponents = torch.cat([torch.linspace(-150, 87, 500), torch.tensor([-1e30, 1e30])])
    u = torch.tensor([1.0, 0.0]).repeat(len(exponents), 1).T[None]
    dt = torch.stack([torch.ones_like(exponents), exponents])[None]
    A, one = torch.ones(len(exponents), 1), torch.ones(1, 2, 1)
    y = selective_scan(u, dt, A, one, one, dt_softplus=False, backend=backend)[0, 1]
    true = torch.exp(exponents.double())
    normal = (true > 1e-37) & (true < 1e38)
    assert ((y[normal] / true[normal] - 1).abs() < 1.5e-5).all()  # |x| roundings of x
    near = exponents.abs() < 4
    assert ((y[near] / true[near] - 1).abs() < 6e-7).all()
    assert (y[true < 1e-38] < 1e-37).all()
    assert torch.isinf(y[-1])


@pytest.mark.parametrize("backend", BACKENDS)
def test_float32_step_sizes_keep_their_relative_precision(backend: str) -> None:
    """With A = 0 and all else 1, one step's state is delta, tiny ones included."""
    raw = torch.linspace(-60, 30, 400)
    u, A, one = torch.ones(1, 1, 400), torch.zeros(400, 1), torch.ones(1, 1, 1)
    y = selective_scan(u, raw.view(1, 1, -1), A, one, one, backend=backend)[0, 0]
    true = F.softplus(raw.double(), threshold=1000)
    # e^x with x rounded once more: half a unit in the last place of x.
    assert ((y / true - 1).abs() < (4 + raw.abs()) * 2**-24).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_decay_is_a_cumulative_sum(backend: str) -> None:
    case = draw(states=1).without("D", "z")
    one = torch.ones_like(case.B)
    y = selective_scan(case.u, case.dt, 0 * case.A, one, one, None, None, case.dt_bias,
                       backend=backend)  # fmt: skip
    assert relative(y, (F.softplus(case.dt + case.dt_bias) * case.u).cumsum(1)) < 1e-13


@pytest.mark.parametrize("backend", BACKENDS)
def test_constant_decay_is_a_geometric_series(backend: str) -> None:
    length, a = 50, 0.75
    one = torch.ones(1, length, 1, dtype=torch.float64)
    A = torch.full((1, 1), a, dtype=torch.float64).log()
    y = selective_scan(one, one, A, one, one, dt_softplus=False, backend=backend)
    steps = torch.arange(1, length + 1, dtype=torch.float64)
    assert relative(y[0, :, 0], (1 - a**steps) / (1 - a)) < 1e-14


def gathered(case: Case, index: torch.Tensor) -> Case:
    u, dt, B, C, z = (t[:, index] for t in (case.u, case.dt, case.B, case.C, case.z))
    return Case(u, dt, case.A, B, C, case.D, z, case.dt_bias)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_index_is_gather_scan_scatter(backend: str, dtype: torch.dtype) -> None:
    case = draw()
    index = torch.randperm(21, generator=torch.Generator().manual_seed(3))
    expected = torch.empty_like(case.u)
    expected[:, index] = plain(gathered(case, index))[0]
    found = selective_scan(*case.args, index=index.to(dtype), backend=backend)
    assert relative(found, expected) < 1e-13


@pytest.mark.parametrize("backend", BACKENDS)
def test_reversed_index_is_flip_scan_flip(backend: str) -> None:
    case = draw()
    back = torch.arange(20, -1, -1)
    expected = selective_scan(*gathered(case, back).args, backend=backend).flip(1)
    assert torch.equal(selective_scan(*case.args, index=back, backend=backend), expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_groups_are_scans_of_their_own(backend: str) -> None:
    case = draw(groups=3)
    index = torch.stack(
        [torch.randperm(21, generator=torch.Generator().manual_seed(k)) for k in range(3)]
    )
    y, last = selective_scan(*case.args, index=index, return_last_state=True, backend=backend)
    for g in range(3):
        u, dt, B, C, z = (t[:, :, g] for t in (case.u, case.dt, case.B, case.C, case.z))
        alone = (u, dt, case.A[g], B, C, case.D[g], z, case.dt_bias[g])
        y_g, last_g = selective_scan(
            *alone, index=index[g], return_last_state=True, backend=backend
        )
        assert relative(y[:, :, g], y_g) < 1e-13
        assert relative(last[:, g], last_g) < 1e-13


@pytest.mark.parametrize("backend", BACKENDS)
def test_channels_may_share_b_and_c_in_parts(backend: str) -> None:
    case = draw(channels=6, shared=3)
    y, last = selective_scan(*case.args, return_last_state=True, backend=backend)
    true = plain(case)
    assert relative(y, true[0]) < 1e-13
    assert relative(last, true[1]) < 1e-13


@pytest.mark.parametrize("backend", BACKENDS)
def test_strided_views_are_read_as_they_lie(backend: str) -> None:
    case = draw(channels=8, states=4)
    wide = torch.cat([case.u, case.z], -1)
    rows = torch.cat([case.B, case.dt, case.C], -1)
    u, z = wide.chunk(2, -1)
    B, dt, C = rows.split([4, 8, 4], -1)
    found = selective_scan(u, dt, case.A.T.contiguous().T, B, C, case.D, z, case.dt_bias,
                           backend=backend)  # fmt: skip
    assert relative(found, plain(case)[0]) < 1e-13
    channel_major = case.u.mT.contiguous().mT
    found = selective_scan(channel_major, *case.args[1:], backend=backend)
    assert relative(found, plain(case)[0]) < 1e-13


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_rows_give_none(backend: str) -> None:
    case = draw(batch=0, length=5)
    y, last = selective_scan(*case.args, return_last_state=True, backend=backend)
    assert y.shape == (0, 5, 5)
    assert last.shape == (0, 5, 3)
    assert not last.any()
    grads = torch.autograd.grad(y.sum(), case.given, allow_unused=True)
    assert all(g is None or not g.any() for g in grads)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("name", "where", "reach"),
    [
        ("u", (0, 7, 2), (0, slice(7, None), 2)),
        ("dt", (0, 7, 2), (0, slice(7, None), 2)),
        ("B", (0, 7, 1), (0, slice(7, None))),
        ("C", (0, 7, 1), (0, 7)),
        ("z", (0, 7, 2), (0, 7, 2)),
    ],
)
def test_nan_reaches_what_the_recurrence_makes_of_it(
    backend: str, dtype: torch.dtype, name: str, where: tuple[int, ...], reach: tuple[object, ...]
) -> None:
    case = draw(channels=17).to(dtype)
    with torch.no_grad():
        getattr(case, name)[where] = torch.nan
    expected = torch.zeros(case.u.shape, dtype=torch.bool)
    expected[reach] = True
    assert torch.equal(selective_scan(*case.args, backend=backend).isnan(), expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_half_precision_is_rounded_once(backend: str) -> None:
    case = draw(channels=16, states=16)
    low = case.to(torch.bfloat16)
    y, last = selective_scan(*low.args, return_last_state=True, backend=backend)
    exact = selective_scan(*low.to(torch.float64).args, backend="reference")
    assert y.dtype == torch.bfloat16
    assert last.dtype == torch.float32
    assert ((y.double() - exact).abs() <= exact.abs() * 2**-8 + 1e-5).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"A": torch.ones(4, 3)}, "A is"),
        ({"B": torch.ones(2, 21, 2, 3)}, "B is"),
        ({"C": torch.ones(2, 20, 3)}, "C is"),
        ({"z": torch.ones(2, 21, 4)}, "z is"),
        ({"u": torch.ones(21, 5)}, "u is"),
        ({"u": torch.ones(2, 21, 5, dtype=torch.int64)}, "u is torch.int64"),
        ({"dt": torch.ones(2, 21, 5, dtype=torch.int64)}, "dt is torch.int64"),
        ({"dt_bias": torch.ones(1)}, "dt_bias is"),
    ],
)
def test_wrong_shapes_are_named(change: dict[str, torch.Tensor], message: str) -> None:
    case = draw()
    for name, value in change.items():
        setattr(case, name, value)
    with pytest.raises(UserError, match=message):
        selective_scan(*case.args)


@pytest.mark.parametrize(
    "index", [torch.arange(20), torch.zeros(21), torch.zeros(21).long(), torch.arange(1, 22)]
)
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_wrong_index_is_refused(index: torch.Tensor, backend: str) -> None:
    with pytest.raises(UserError, match="index"):
        selective_scan(*draw().args, index=index, backend=backend)


@pytest.mark.parametrize(
    ("shape", "message"), [("length", "u: .* no tokens"), ("states", "A: .* no states")]
)
def test_no_tokens_and_no_states_are_refused(shape: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        selective_scan(*draw(**{shape: 0}).args)


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("name", ["u", "dt", "A", "B", "C", "D", "z", "dt_bias"])
def test_nan_is_refused_on_request(
    name: str, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = draw()
    with torch.no_grad():
        getattr(case, name).view(-1)[3] = torch.nan
    selective_scan(*case.args, backend=backend)
    monkeypatch.setenv("LIT_RESTORE_SCAN_CHECK", "1")
    with pytest.raises(UserError, match=rf"{name}: is NaN at \(.*3"):
        selective_scan(*case.args, backend=backend)


def test_tensors_of_several_devices_are_refused() -> None:
    case = draw()
    case.A = case.A.to("meta")
    with pytest.raises(UserError, match="A: is on meta, not cpu"):
        selective_scan(*case.args)
