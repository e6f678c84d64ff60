"""The scan's lengths, states and groups against float64, on every instruction set of the CPU."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from scan_cases import CPU, draw, gradients, relative

from lit_restore.ops import native, selective_scan
from lit_restore.ops.selective_scan import cpu as scan_cpu

LIMITS = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


def errors(backend: str, dtype: torch.dtype, length: int, states: int, groups: int) -> list[float]:
    """Of y, the last state and all gradients; in a random order, with channels left over."""
    generator = torch.Generator().manual_seed(length + states)
    rounded = draw(2, length, 19, states, groups=groups).to(dtype)
    true = rounded.to(torch.float64)
    index = torch.stack([torch.randperm(length, generator=generator) for _ in range(groups)])
    y, last = selective_scan(*true.args, index=index, return_last_state=True, backend="reference")
    found, found_last = selective_scan(
        *rounded.args, index=index, return_last_state=True, backend=backend
    )
    assert (found.dtype, found_last.dtype) == (dtype, torch.float32)
    pairs = [(found, y), (found_last, last)]
    pairs += zip(gradients(found, rounded.given), gradients(y, true.given), strict=True)
    return [relative(a, b) for a, b in pairs]


@pytest.mark.parametrize("backend", [CPU])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("states", [1, 4, 16, 32])
@pytest.mark.parametrize("length", [1, 5, 64, 256, 300, 1024])
def test_every_length_number_of_states_and_groups(
    backend: str, length: int, states: int, groups: int
) -> None:
    for dtype, limit in LIMITS.items():
        found = errors(backend, dtype, length, states, groups)
        assert max(found) < limit, (dtype, found)


@pytest.fixture
def level(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """One instruction set, whatever else the CPU has."""
    name: str = request.param
    if name not in native.levels():
        pytest.skip(f"this CPU has no {name}")
    monkeypatch.setattr(native, "levels", lambda: [name])
    native._attempt.cache_clear()
    scan_cpu._functions.cache_clear()
    yield name
    native._attempt.cache_clear()
    scan_cpu._functions.cache_clear()


@pytest.mark.parametrize("level", sorted(native.LEVELS), indirect=True)
@pytest.mark.parametrize("backend", [CPU])
@pytest.mark.parametrize("states", [3, 8, 16, 21])
def test_every_instruction_set(level: str, backend: str, states: int) -> None:
    found = errors(backend, torch.float32, 37, states, 2)
    assert max(found) < LIMITS[torch.float32], found
    assert f"selective_scan-{level}-" in scan_cpu._functions()._name


@pytest.mark.parametrize("level", sorted(native.LEVELS), indirect=True)
@pytest.mark.parametrize("backend", [CPU])
def test_decays_without_bounds_on_every_instruction_set(level: str, backend: str) -> None:
    """u = 1, then 0, and B = 1: the last state is exp(dt A) + dt 0."""
    exponents = torch.tensor([-torch.inf, -1e30, -200.0, 0.0, 200.0, 1e30, torch.inf, torch.nan])
    u = torch.tensor([1.0, 0.0]).repeat(len(exponents), 1).T[None]
    dt = torch.stack([torch.ones_like(exponents), exponents])[None]
    A, one = torch.ones(len(exponents), 1), torch.ones(1, 2, 1)
    states = selective_scan(
        u, dt, A, one, one, dt_softplus=False, backend=backend, return_last_state=True
    )[1].flatten()
    true = torch.exp(exponents) + exponents * 0.0
    assert torch.equal(states.isnan(), true.isnan())
    assert torch.allclose(states, true, equal_nan=True)
