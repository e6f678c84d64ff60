"""The Triton kernels: run in Triton's interpreter, compiled for GPUs that are not here, and on one.

The interpreter decides when a kernel is decorated, and dies of an address out of bounds: a process
of its own runs the cases and writes what it found as JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from scan_cases import draw, gradients, relative
from triton_checks import CASES, CONVOLUTIONS, Limits, conv_cubin, needs, resources

from lit_restore.errors import UserError
from lit_restore.ops import selective_scan
from lit_restore.ops.selective_scan import triton as backend
from lit_restore.ops.selective_scan.shapes import grouped

pytest.importorskip("triton", reason="Triton is not installed")
HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, float]]:
    """Case → tensor → error relative to the largest entry of the float64 reference."""
    out = tmp_path_factory.mktemp("triton") / "found.json"
    env = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, HERE / "triton_checks.py", out],
        env=env, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, dict[str, float]] = json.loads(out.read_text())
    return found


@pytest.mark.parametrize("case", CASES)
def test_all_outputs_and_gradients_are_the_references(
    interpreted: dict[str, dict[str, float]], case: str
) -> None:
    bound = 2e-2 if "bfloat16" in case else 1e-5
    errors = interpreted[case]
    assert set(errors) >= {"y", "last", "kept", "u", "dt", "A", "B", "C"}
    assert all(error < bound for error in errors.values()), errors  # NaN is below nothing


@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_the_convolution_too(interpreted: dict[str, dict[str, float]], case: str) -> None:
    errors = interpreted[case]
    assert set(errors) >= {"y", "x", "weight"}
    assert max(errors.values()) < (2e-2 if "bfloat16" in case else 1e-5), errors


# Compiled only -----------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", [80, 90, 100, 120])
@pytest.mark.parametrize("kernel", ["forward", "backward"])
def test_compiles_without_a_gpu(kernel: str, arch: int) -> None:
    found = resources(kernel, arch, "bfloat16")
    assert found.registers <= 255
    assert found.code


@pytest.mark.parametrize("arch", [80, 90, 100, 120])
@pytest.mark.parametrize("kernel", ["forward", "backward"])
def test_the_convolution_compiles_without_a_gpu_and_spills_nothing(kernel: str, arch: int) -> None:
    found = needs(conv_cubin(kernel, arch), main_loop_updates=1, kernel="forward")
    assert found.stack == 0
    assert found.registers <= 128


@pytest.mark.parametrize(
    ("kernel", "dtype", "limits"),
    [
        ("forward", "bfloat16", Limits(registers=128, stack=0, per_update=12.0)),
        ("forward", "float32", Limits(registers=128, stack=0, per_update=12.0)),
        # The backward lives on the edge of the register file; a word or two may spill.
        ("backward", "bfloat16", Limits(registers=255, stack=32, per_update=52.0)),
        ("backward", "float32", Limits(registers=255, stack=32, per_update=52.0)),
    ],
)
def test_resources_on_hopper(kernel: str, dtype: str, limits: Limits) -> None:
    found = resources(kernel, 90, dtype)
    assert found.registers <= limits.registers
    assert found.stack <= limits.stack
    assert found.per_update <= limits.per_update


# What it takes -----------------------------------------------------------------------------------


def test_what_it_does_not_take() -> None:
    assert backend.unfit(grouped(*draw().to(torch.float32).args, None, True)) is None
    assert backend.unfit(grouped(*draw().to(torch.bfloat16).args, None, True)) is None
    assert backend.unfit(grouped(*draw().args, None, True)) == "it computes in float32"
    many = grouped(*draw(states=65).to(torch.float32).args, None, True)
    assert backend.unfit(many) == "65 states are more than 64"


def test_no_silent_way_out_when_it_is_named() -> None:
    with pytest.raises(UserError, match='"triton" does not compute on cpu; say "auto"'):
        selective_scan(*draw().args, backend="triton")


# On a GPU ----------------------------------------------------------------------------------------


@pytest.fixture
def on_gpu() -> torch.device:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return torch.device("cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("length", [1, 5, 64, 256, 300, 1024])
@pytest.mark.parametrize("states", [1, 4, 16, 32])
def test_on_a_gpu(on_gpu: torch.device, dtype: torch.dtype, length: int, states: int) -> None:
    case = draw(length=length, channels=70, states=states, groups=2).to(dtype)
    true = case.to(torch.float64)
    index = torch.stack([torch.randperm(length) for _ in range(2)])
    y = selective_scan(*true.args, index=index, backend="reference")
    expected = [y, *gradients(y, true.given)]
    runs: list[list[Any]] = []
    for _ in range(2):
        here = [None if t is None else t.detach().to(on_gpu).requires_grad_() for t in case.args]
        out = selective_scan(*here, index=index.to(on_gpu), backend="triton")
        weights = torch.randn(
            y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64
        )
        runs.append([out, *torch.autograd.grad(out, here, weights.to(out))])
    bound = 1e-5 if dtype == torch.float32 else 2e-2
    for found, again, wanted in zip(*runs, expected, strict=True):
        assert torch.equal(found, again)
        assert relative(found.cpu(), wanted) < bound
