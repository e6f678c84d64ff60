"""The selective scan as an operator: opcheck, compile, autocast, threads; and who computes it."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterator
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
from scan_cases import BACKENDS, CPU, draw, gradients, relative
from torch import Tensor

from lit_restore.errors import UserError
from lit_restore.ops import causal_conv, native, selective_scan
from lit_restore.ops.selective_scan import arguments, cpu, dispatch, set_backend, using
from lit_restore.ops.selective_scan.op import scan_op
from lit_restore.ops.selective_scan.shapes import grouped


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("missing", [(), ("D", "z", "dt_bias")])
def test_opcheck(backend: str, missing: tuple[str, ...]) -> None:
    case = draw(length=18).to(torch.float32).without(*missing)
    index = torch.arange(17, -1, -1, dtype=torch.int32)
    s = grouped(*case.args, index=index, dt_softplus=True)
    tensors = (s.u, s.dt, s.A, s.B, s.C, s.D, s.z, s.dt_bias, s.index)
    leaves = [
        t.detach().clone().requires_grad_(t.is_floating_point()) if t is not None else None
        for t in tensors
    ]
    for save in (True, False):
        torch.library.opcheck(
            scan_op, (*leaves, True, backend, save),
            test_utils=("test_schema", "test_autograd_registration", "test_faketensor",
                        "test_aot_dispatch_static"),
        )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_opcheck_with_dynamic_shapes(backend: str) -> None:
    s = grouped(*draw(length=18).to(torch.float32).args, index=None, dt_softplus=True)
    tensors = (s.u, s.dt, s.A, s.B, s.C, s.D, s.z, s.dt_bias, s.index)
    torch.library.opcheck(scan_op, (*tensors, True, backend, True))


@pytest.mark.parametrize("backend", [None, "reference"])
def test_compile_neither_breaks_the_graph_nor_unrolls_the_loop(backend: str | None) -> None:
    case = draw().to(torch.float32)
    nodes: list[int] = []

    def count(graph: torch.fx.GraphModule, _: object) -> torch.fx.GraphModule:
        nodes.append(len(graph.graph.nodes))
        return graph

    def scan(*args: Tensor) -> Tensor:
        return selective_scan(*args, backend=backend) * 2

    torch.compile(scan, backend=count, fullgraph=True)(*case.args)
    assert nodes[0] < 40
    torch._dynamo.reset()
    compiled = torch.compile(scan, backend="aot_eager", fullgraph=True)
    found, true = compiled(*case.args), scan(*case.args)
    assert relative(found, true) < 1e-6
    pairs = zip(gradients(found, case.given), gradients(true, case.given), strict=True)
    assert max(relative(a, b) for a, b in pairs) < 5e-6
    torch._dynamo.reset()


def test_compiled_jvp_is_not_silently_zero() -> None:
    args = [t.detach() for t in draw(length=3).args if t is not None]

    def slope(u: Tensor) -> Tensor:
        along = torch.ones_like(u)
        return torch.func.jvp(lambda v: selective_scan(v, *args[1:]), (u,), (along,))[1]

    found = torch.compile(slope, backend="aot_eager", fullgraph=True)(args[0])
    assert relative(found, slope(args[0])) < 1e-12
    torch._dynamo.reset()


def test_meta_tensors_have_shapes() -> None:
    args = [t.detach().to("meta") for t in draw(groups=2).args if t is not None]
    y, last = selective_scan(*args, return_last_state=True)
    assert y.shape == (2, 21, 2, 5)
    assert last.shape == (2, 2, 5, 3)


@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast_lowers_the_tokens_and_leaves_the_parameters(backend: str) -> None:
    case = draw(channels=16, states=16).to(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        y = selective_scan(*case.args, backend=backend)
    grads = gradients(y, case.given)
    assert y.dtype == torch.bfloat16
    assert {g.dtype for g in grads} == {torch.float32}
    low = {name: getattr(case, name).bfloat16() for name in ("u", "dt", "B", "C", "z")}
    by_hand = selective_scan(
        low["u"], low["dt"], case.A, low["B"], low["C"], case.D, low["z"], case.dt_bias,
        backend=backend,
    )  # fmt: skip
    assert torch.equal(y, by_hand)
    with torch.autocast("cpu", torch.bfloat16):
        assert selective_scan(*draw().args, backend=backend).dtype == torch.float64


@pytest.mark.parametrize("backend", [CPU])
def test_results_do_not_depend_on_the_number_of_threads(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = draw(batch=5, length=100, channels=520, states=16).to(torch.float32)
    found = []
    for count in (1, 2, 7):
        monkeypatch.setattr(torch, "get_num_threads", lambda count=count: count)
        y = selective_scan(*case.args, backend=backend)
        found.append((y, *gradients(y, case.given)))
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def _in_child(queue: object) -> None:
    queue.put(_sums_of_scan())  # type: ignore[attr-defined]


def _sums_of_scan() -> list[float]:
    """Forward and backward of the kernel; autograd's own threads do not survive a fork."""
    case = draw(batch=5, length=100, channels=520, states=16).to(torch.float32)
    s = grouped(*(t.detach() for t in case.given), index=None, dt_softplus=True)
    y, _, states = cpu.forward(s, save=True)
    grads = cpu.backward(s, torch.ones_like(y), states)
    return [float(t.double().sum()) for t in (y, grads.dt, grads.A, grads.B)]


@pytest.mark.parametrize("backend", [CPU])
def test_a_fork_of_a_process_whose_threads_scanned_scans(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Seen by our kernel alone: PyTorch's own threads do not survive one either.
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    expected = _sums_of_scan()
    context = get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_in_child, args=(queue,), daemon=True)
    child.start()
    try:
        assert queue.get(timeout=20) == expected
    finally:
        child.kill()
        child.join(60)


def test_only_states_at_chunks_are_kept_for_the_backward() -> None:
    case = draw(length=40, states=16)
    s = grouped(*case.args, index=None, dt_softplus=True)
    tensors = (s.u, s.dt, s.A, s.B, s.C, s.D, s.z, s.dt_bias, s.index)
    states = scan_op(*tensors, True, "auto", True)[2]
    assert states.shape == (2, -(-40 // arguments.CHUNK), 1, 16, 5)
    assert scan_op(*tensors, True, "auto", False)[2].numel() == 0


# Who computes it -------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def defaults(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv(dispatch.VARIABLE, raising=False)
    yield
    set_backend(dispatch.AUTO)


def test_argument_before_variable_before_default(monkeypatch: pytest.MonkeyPatch) -> None:
    assert dispatch.requested(None) == "auto"
    set_backend("reference")
    assert dispatch.requested(None) == "reference"
    monkeypatch.setenv(dispatch.VARIABLE, "cpu")
    assert dispatch.requested(None) == "cpu"
    assert dispatch.requested("auto") == "auto"
    with using("reference"):
        assert dispatch.requested(None) == "reference"
        with using("cpu"):
            assert dispatch.requested(None) == "cpu"
        assert dispatch.requested("cpu") == "cpu"
    assert dispatch.requested(None) == "cpu"


def test_unknown_backends_are_refused_with_the_known_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=re.escape('backend: no backend "gpu"; there are auto')):
        set_backend("gpu")
    with pytest.raises(UserError, match="no backend"):
        selective_scan(*draw().args, backend="gpu")
    monkeypatch.setenv(dispatch.VARIABLE, "gpu")
    with pytest.raises(UserError, match=dispatch.VARIABLE):
        selective_scan(*draw().args)


def test_a_backend_does_not_compute_on_a_device_it_does_not_know() -> None:
    with pytest.raises(UserError, match='"cpu" does not compute on cuda'):
        dispatch.kernel("lit_restore.ops.selective_scan", "cpu", torch.device("cuda"), None)
    with pytest.raises(UserError, match='"triton" does not compute on cpu'):
        selective_scan(*draw().args, backend="triton")


@pytest.mark.parametrize(
    ("dtype", "expected", "reason"),
    [
        (torch.float32, "triton", ""),
        (torch.float64, "reference", "; triton does not take this: it computes in float32"),
    ],
)
def test_the_best_that_takes_the_arguments_computes_and_the_log_says_why(
    dtype: torch.dtype,
    expected: str,
    reason: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("triton", "cuda"):
        if dispatch.refusal("lit_restore.ops.selective_scan", name, "cuda"):
            pytest.skip(f"{name} is not installed")
    monkeypatch.setattr(dispatch, "_announced", set())
    s = grouped(*draw().to(dtype).args, None, True)
    with caplog.at_level(logging.INFO, logger="lit_restore"):
        kernel = dispatch.kernel("lit_restore.ops.selective_scan", "auto", torch.device("cuda"), s)
    assert kernel.__name__ == f"lit_restore.ops.selective_scan.{expected}"
    (record,) = caplog.records
    assert record.getMessage().startswith(f"selective_scan on cuda: {expected} backend{reason}")
    assert ("cuda does not" in record.getMessage()) == bool(reason)
    assert record.levelno == (logging.WARNING if reason else logging.INFO)


def test_active_backend_is_told_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "_announced", set())
    with caplog.at_level(logging.INFO, logger="lit_restore"):
        for _ in range(2):
            selective_scan(*draw().args)
    assert len([r for r in caplog.records if "selective_scan on cpu" in r.message]) == 1


@pytest.fixture
def no_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A process that has not built anything yet, where there is nothing to build with."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("LIT_RESTORE_CACHE", str(tmp_path))
    monkeypatch.setattr(native, "_warned", [])
    monkeypatch.setattr(dispatch, "_announced", set())
    native._attempt.cache_clear()
    yield
    native._attempt.cache_clear()


@pytest.mark.usefixtures("no_compiler")
def test_without_a_compiler_one_warning_and_the_reference(caplog: pytest.LogCaptureFixture) -> None:
    case = draw()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        with caplog.at_level(logging.INFO, logger="lit_restore"):
            for _ in range(2):
                y = selective_scan(*case.args)
                causal_conv(case.u, torch.ones(5, 4))
    assert len(told) == 1
    assert str(told[0].message).startswith("no C++ compiler found")
    assert relative(y, selective_scan(*case.args, backend="reference")) < 1e-13
    assert gradients(y, case.given)[0].isfinite().all()
    said = {record.message for record in caplog.records}
    expected = "{} on cpu: reference backend; cpu is not available: no C++ compiler found"
    assert {line.partition(" (")[0] for line in said} == {
        expected.format(op) for op in ("selective_scan", "causal_conv")
    }
    with pytest.raises(UserError, match='"cpu" is not available: no C'):
        selective_scan(*case.args, backend="cpu")
