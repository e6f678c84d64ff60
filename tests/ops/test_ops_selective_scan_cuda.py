"""The scan's CUDA kernels: run on the CPU thread by thread, compiled without a GPU, run on one."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from scan_cases import relative
from torch import Tensor
from torch.nn import functional as F

from lit_restore.ops import native, nvrtc
from lit_restore.ops.selective_scan import cuda, reference
from lit_restore.ops.selective_scan.arguments import CHUNK, Scan

EMULATOR = Path(__file__).with_name("cuda_on_cpu.h")
KERNELS = Path(cuda.__file__).parent
DRIVER = """
#include "cuda_on_cpu.h"
#include "{source}"
static void body(const void *a) {{ {kernel}(*static_cast<const {argument} *>(a)); }}
extern "C" int run(const void *a, unsigned blocks, unsigned threads) {{
  return cuda_on_cpu::launch(blocks, threads, body, a);
}}
"""
needs_gxx = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ here")
needs_nvrtc = pytest.mark.skipif(
    nvrtc.unavailable() is not None, reason=f"no NVRTC here: {nvrtc.unavailable()}"
)
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")


# ---- on the CPU


def _build(folder: Path, source: str, kernel: str, argument: str, flags: list[str]) -> ctypes.CDLL:
    folder.mkdir()
    driver, library = folder / "driver.cpp", folder / "kernel.so"
    driver.write_text(DRIVER.format(source=source, kernel=kernel, argument=argument))
    folders = [f"-I{EMULATOR.parent}", f"-I{KERNELS}", f"-I{folder.parent}"]
    command = ["g++", "-std=c++17", "-O1", "-shared", "-fPIC", *folders, *flags]
    subprocess.run([*command, str(driver), "-o", str(library)], check=True, timeout=120)
    return ctypes.CDLL(str(library))


@pytest.fixture(scope="session")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Callable[[cuda.Call], ctypes.CDLL]:
    """A kernel's library, built once for each set of macros."""
    folder = tmp_path_factory.mktemp("cuda")
    built: dict[nvrtc.Source, ctypes.CDLL] = {}

    def library(call: cuda.Call) -> ctypes.CDLL:
        if call.source not in built:
            flags = [f"-D{name}={value}" for name, value in call.source.defines]
            argument = call.name.removeprefix("scan_").capitalize()
            place = folder / str(len(built))
            built[call.source] = _build(place, call.source.path.name, call.name, argument, flags)
        return built[call.source]

    return library


@pytest.fixture
def calls(
    libraries: Callable[[cuda.Call], ctypes.CDLL], monkeypatch: pytest.MonkeyPatch
) -> list[cuda.Call]:
    """The backend on the CPU, with two channels to a thread however few there are; its calls."""
    made: list[cuda.Call] = []

    def run(call: cuda.Call, _: torch.device) -> None:
        made.append(call)
        assert libraries(call).run(ctypes.byref(call.args), call.blocks, call.threads) == 0

    monkeypatch.setattr(cuda, "_run", run)
    monkeypatch.setattr(cuda, "ENOUGH", 0)
    return made


@dataclass(frozen=True)
class Sizes:
    batch: int = 2
    length: int = 33
    groups: int = 1
    channels: int = 10
    states: int = 16
    dtype: torch.dtype = torch.float32


def example(x: Sizes, *, seed: int = 0) -> tuple[Scan, Tensor]:
    """Arguments with everything but an index, and the gradient of y."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int, dtype: torch.dtype = x.dtype) -> Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    token, few = (x.batch, x.length, x.groups, x.channels), (x.batch, x.length, x.groups, x.states)
    inner, full = (x.groups, x.channels), torch.float32
    s = Scan(
        u=normal(*token), dt=normal(*token) - 1, A=-torch.exp(normal(*inner, x.states, dtype=full)),
        B=normal(*few), C=normal(*few), D=normal(*inner, dtype=full), z=normal(*token),
        dt_bias=normal(*inner, dtype=full), index=None, dt_softplus=True,
    )  # fmt: skip
    return s, normal(*token)


def orders(x: Sizes) -> Tensor:
    """A permutation for each group, the last one the reversal."""
    generator = torch.Generator().manual_seed(7)
    rows = [torch.randperm(x.length, generator=generator) for _ in range(x.groups - 1)]
    return torch.stack([*rows, torch.arange(x.length - 1, -1, -1)])


def mapped(s: Scan, change: Callable[[Tensor], Tensor]) -> Scan:
    given: dict[str, Any] = {field.name: getattr(s, field.name) for field in fields(s)}
    given = {name: change(t) for name, t in given.items() if isinstance(t, Tensor)}
    return replace(s, **given)


def double(s: Scan) -> Scan:
    return mapped(s, lambda t: t.double() if t.is_floating_point() else t)


def without(s: Scan, names: tuple[str, ...]) -> Scan:
    gone: dict[str, Any] = dict.fromkeys(names)
    return replace(s, **gone)


def check(s: Scan, grad: Tensor, most: float, true_of: Scan | None = None) -> None:
    """Everything that both kernels return, against float64."""
    exact = double(true_of or s)
    y, last, kept = cuda.forward(s, save=True)
    true = reference.forward(exact, save=True)
    assert y.dtype == s.u.dtype
    assert last.dtype == kept.dtype == torch.float32
    assert all(t.is_contiguous() for t in (y, last, kept))
    for name, a, b in zip(("y", "last", "kept"), (y, last, kept), true, strict=True):
        assert relative(a, b) < most, name
    found = cuda.backward(s, grad, kept)
    expected = reference.backward(exact, grad.double(), true[2])
    for field in fields(found):
        a, b, of = (getattr(x, field.name) for x in (found, expected, s))
        assert (a is None) == (of is None)
        if a is not None:
            assert a.dtype == of.dtype
            assert a.is_contiguous()
            assert relative(a, b) < most, field.name


FULL = Sizes(groups=2, channels=70)


@needs_gxx
@pytest.mark.parametrize(
    ("x", "absent", "ordered", "most"),
    [
        (FULL, (), True, 1e-5),
        (Sizes(batch=1, length=64, channels=33), (), True, 1e-5),
        (Sizes(length=5, groups=2, channels=6, states=4), ("D", "z", "dt_bias"), False, 1e-5),
        (Sizes(batch=1, length=1, channels=1, states=1), (), False, 1e-5),
        (Sizes(states=32), ("D",), True, 1e-5),
        (Sizes(length=17, channels=3, states=64), ("z",), False, 1e-5),
        (Sizes(length=64, groups=2, channels=34, dtype=torch.bfloat16), (), True, 2e-2),
        (Sizes(channels=7, states=5, dtype=torch.bfloat16), ("dt_bias",), True, 2e-2),
        (Sizes(channels=8, dtype=torch.float16), (), False, 2e-3),
        (Sizes(channels=5, dtype=torch.float16), (), False, 2e-3),
    ],
    ids=lambda x: "".join(f"{key[0]}{value}" for key, value in vars(x).items())
    if isinstance(x, Sizes) else None,
)  # fmt: skip
def test_kernels_are_the_recurrence_and_its_gradients(
    calls: list[cuda.Call], x: Sizes, absent: tuple[str, ...], ordered: bool, most: float
) -> None:
    s, grad = example(x)
    s = replace(without(s, absent), index=orders(x) if ordered else None)
    check(s, grad, most)
    defines = dict(calls[0].source.defines)
    assert defines["PAIRS"] == (x.channels % 2 == 0 and x.states <= 32)
    assert [call.name for call in calls] == ["scan_forward", "scan_backward"]


@needs_gxx
def test_states_are_kept_only_when_asked_for(calls: list[cuda.Call]) -> None:
    s, _ = example(FULL)
    s = replace(s, index=orders(FULL))
    y, last, kept = cuda.forward(s, save=False)
    again = cuda.forward(s, save=True)
    assert torch.equal(y, again[0])
    assert torch.equal(last, again[1])
    assert (kept.shape[1], again[2].shape[1]) == (0, 3)


@needs_gxx
def test_few_channels_are_one_to_a_thread(
    calls: list[cuda.Call], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda, "ENOUGH", 1 << 16)
    s, grad = example(Sizes(channels=70))
    check(replace(s, index=orders(FULL)[:1].int()), grad, 1e-5)
    assert [dict(call.source.defines)["PER"] for call in calls] == [1, 2]


@needs_gxx
def test_strided_views_are_read_as_they_lie(calls: list[cuda.Call]) -> None:
    x = Sizes(channels=70, groups=2)
    s, grad = example(x)
    assert s.z is not None
    wide = torch.cat([s.u, s.z], -1)
    for odd in (0, 1):
        rows = torch.cat([s.B[..., :odd], s.B, s.dt, s.C, s.C[..., :odd]], -1)
        u, z = wide.chunk(2, -1)
        B, dt, C = (rows[..., odd + n : odd + n + k] for n, k in ((0, 16), (16, 70), (86, 16)))
        view = replace(s, u=u, dt=dt, B=B, C=C, z=z, index=orders(x))
        check(view, grad, 1e-5, replace(s, index=orders(x)))
        assert calls[-1].args.s.dt.data == dt.data_ptr()
        assert dict(calls[-1].source.defines)["PAIRS"] == 1 - odd
    major = replace(s, u=s.u.transpose(1, 3).contiguous().transpose(1, 3), index=orders(x))
    found = cuda.forward(major, save=True)[0]
    assert torch.equal(found, cuda.forward(replace(s, index=orders(x)), save=True)[0])


@needs_gxx
def test_mixed_types_are_computed_in_float32(calls: list[cuda.Call]) -> None:
    s, grad = example(FULL)
    assert s.D is not None
    s = replace(s, u=s.u.bfloat16(), C=s.C.half(), D=s.D.bfloat16(), index=orders(FULL))
    check(s, grad.bfloat16(), 1e-2)
    assert dict(calls[0].source.defines)["KIND"] == 0


@needs_gxx
def test_step_sizes_large_and_tiny(calls: list[cuda.Call]) -> None:
    """Without decay and all else 1, one step's state is delta; its slope is the sigmoid."""
    raw = torch.linspace(-60, 30, 70)
    s, _ = example(Sizes(batch=1, length=1, channels=70))
    one = torch.ones_like(s.B)
    s = replace(s, dt=raw.view_as(s.dt), u=torch.ones_like(s.u), A=0 * s.A, B=one, C=one / 16,
                z=None, D=None, dt_bias=None, index=torch.zeros(1, 1).int())  # fmt: skip
    y, _, kept = cuda.forward(s, save=True)
    true = F.softplus(raw.double(), threshold=1000)
    assert ((y.flatten() / true - 1).abs() < (4 + raw.abs()) * 2**-24).all()
    slope = cuda.backward(s, torch.ones_like(y), kept).dt
    assert ((slope.flatten() / raw.double().sigmoid() - 1).abs() < (4 + raw.abs()) * 2**-24).all()
    s, grad = example(FULL)
    check(replace(s, dt=s.dt * 30, index=orders(FULL)), grad, 1e-5)
    small = replace(s, dt=s.dt.abs(), dt_bias=None, dt_softplus=False, index=orders(FULL))
    check(small, grad, 1e-5)


@needs_gxx
@pytest.mark.parametrize("name", ["u", "dt", "B", "C", "z"])
def test_nan_reaches_what_the_recurrence_makes_of_it(calls: list[cuda.Call], name: str) -> None:
    """Row 0 too, which the steps of the last chunk that there are not read."""
    for row in (0, 7):
        s, grad = example(FULL)
        getattr(s, name)[0, row, 1, 2] = torch.nan
        s = replace(s, index=torch.arange(FULL.length).expand(FULL.groups, -1))
        y, _, kept = cuda.forward(s, save=True)
        expected = torch.zeros(s.u.shape, dtype=torch.bool)
        steps = slice(row, None if name in ("u", "dt", "B") else row + 1)
        expected[0, steps, 1, 2 if name in ("u", "dt", "z") else slice(None)] = True
        assert torch.equal(y.isnan(), expected)
        # Where it goes from there the reference knows.
        found, exact = cuda.backward(s, grad, kept), double(s)
        true = reference.backward(exact, grad.double(), reference.forward(exact, save=True)[2])
        for field in fields(found):
            a, b = (getattr(x, field.name).isnan() for x in (found, true))
            assert torch.equal(a, b), field.name


@pytest.mark.parametrize(("batch", "length"), [(2, 0), (0, 5)])
def test_nothing_gives_nothing(batch: int, length: int) -> None:
    s, grad = example(Sizes(batch=batch, length=length))
    y, last, kept = cuda.forward(s, save=True)
    assert y.shape == s.u.shape
    assert last.shape == s.state_shape
    assert not last.any()
    found = cuda.backward(s, grad, kept)
    for name in ("u", "dt", "A", "B", "C", "D", "z", "dt_bias"):
        assert getattr(found, name).shape == getattr(s, name).shape
        assert not getattr(found, name).any()


def test_what_it_does_not_take_is_said_in_a_line() -> None:
    s, _ = example(Sizes(states=65))
    assert cuda.unfit(s) == "65 states are more than 64"
    s, _ = example(Sizes())
    assert cuda.unfit(s) is None
    assert cuda.unfit(replace(s, z=s.u.double())) == "it computes in float32"


@needs_gxx
@pytest.mark.parametrize(
    "barrier", ["__syncthreads()", "__syncwarp()", "*a.out = __shfl_xor_sync(~0u, 1, 1)"]
)
def test_emulation_finds_threads_that_leave_while_others_wait(tmp_path: Path, barrier: str) -> None:
    (tmp_path / "leaves.cu").write_text(
        "struct Which { int *out; int leaves; };\n"
        f"void kernel(Which a) {{ if (int(threadIdx.x) != a.leaves) {barrier}; }}"
    )
    library = _build(tmp_path / "so", "leaves.cu", "kernel", "Which", [])

    class Which(ctypes.Structure):
        _fields_ = [("out", ctypes.c_void_p), ("leaves", ctypes.c_int)]

    out = ctypes.c_int()
    for leaves, expected in ((-1, 0), (3, 1), (63, 1)):
        which = Which(ctypes.addressof(out), leaves)
        assert library.run(ctypes.byref(which), 2, 64) == expected


# ---- compiled


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LIT_RESTORE_CACHE", str(tmp_path / "cache"))
    return native.cache_folder()


@pytest.fixture
def compiled_sources(monkeypatch: pytest.MonkeyPatch) -> list[nvrtc.Source]:
    """What NVRTC was asked for."""
    asked: list[nvrtc.Source] = []
    compiled = nvrtc._compiled

    def count(source: nvrtc.Source, *rest: Any) -> bytes:
        asked.append(source)
        return compiled(source, *rest)

    monkeypatch.setattr(nvrtc, "_compiled", count)
    return asked


def sources(s: Scan, grad: Tensor) -> Iterator[nvrtc.Source]:
    """What the two kernels are compiled from for these arguments."""
    made: list[cuda.Call] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cuda, "_run", lambda call, _: made.append(call))
        patch.setattr(cuda, "ENOUGH", 0)
        cuda.backward(s, grad, cuda.forward(s, save=True)[2])
    return (call.source for call in made)


def plain_sources(states: int = 16, dtype: torch.dtype = torch.bfloat16) -> list[nvrtc.Source]:
    x = Sizes(batch=1, channels=32, states=states, dtype=dtype)
    s, grad = example(x)
    return list(sources(replace(s, index=orders(x)), grad))


@needs_nvrtc
@pytest.mark.parametrize("arch", ["sm_80", "sm_90", "sm_100", "sm_120"])
@pytest.mark.parametrize(
    ("states", "dtype"), [(16, torch.bfloat16), (5, torch.float16), (33, torch.float32)]
)
def test_kernels_compile_for_every_architecture(
    cache: Path, arch: str, states: int, dtype: torch.dtype
) -> None:
    if int(arch[3:]) not in nvrtc.supported():
        pytest.skip(f"NVRTC {nvrtc.version()} does not know {arch}")
    for source in plain_sources(states, dtype):
        assert nvrtc.cubin(source, arch).startswith(b"\x7fELF")


def _dump(cubin: Path, what: str) -> str:
    triton = pytest.importorskip("triton")
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    if not tool.exists():
        pytest.skip("no cuobjdump here")
    done = subprocess.run([tool, what, cubin], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


@dataclass
class Loop:
    first: int
    last: int
    size: int
    """Instructions, those of inner loops once."""
    powers: int
    """Instructions that compute a power of two."""


def _loops(sass: str) -> list[Loop]:
    """Of the one function in it, the outermost first, by the branches that go back."""
    lines = [
        (int(place, 16), text)
        for place, text in re.findall(r"/\*([0-9a-f]{4,})\*/\s+([^;]*);", sass)
        if not text.startswith("NOP")
    ]
    found = []
    for place, text in lines:
        target = re.search(r"\bBRA\b.*?0x([0-9a-f]+)", text)
        if target and int(target[1], 16) < place:
            body = [code for at, code in lines if int(target[1], 16) <= at <= place]
            powers = sum("MUFU.EX2" in code for code in body)
            found.append(Loop(int(target[1], 16), place, len(body), powers))
    return sorted(found, key=lambda loop: (loop.first, -loop.last))


@needs_nvrtc
def test_kernels_are_as_short_as_they_should_be(cache: Path, tmp_path: Path) -> None:
    """In bfloat16, with 16 states and everything there is, on Hopper: registers and instructions
    of a thread for each state that it updates."""
    programs = {}
    for source in plain_sources():
        path = tmp_path / source.path.stem
        path.write_bytes(nvrtc.cubin(source, "sm_90"))
        usage = _dump(path, "-res-usage")
        found = re.search(r"REG:(\d+) STACK:(\d+) .*?LOCAL:(\d+)", usage)
        assert found, usage
        assert (found[2], found[3]) == ("0", "0"), f"spills: {usage}"
        programs[source.path.stem] = int(found[1]), _loops(_dump(path, "-sass"))

    registers, loops = programs["cuda_forward"]
    assert registers <= 128
    step = min((loop for loop in loops if loop.powers >= 32), key=lambda loop: loop.size)
    assert step.powers == 32 + 2 * 2  # two channels of 16 states; softplus and gate
    assert step.size / 32 <= 8.5, step

    registers, loops = programs["cuda_backward"]
    assert registers <= 255
    chunk, again, span = (loop for loop in loops if loop.powers >= 32)
    assert chunk.last > span.last > span.first > again.last
    # Three spans of four steps, and then all four of them; what stages and sums turns once.
    whole = chunk.size - again.size - span.size + 3 * again.size + 4 * span.size
    assert whole / (CHUNK * 2 * 4) <= 35, (whole, again, span)


# ---- the cache


def source_at(folder: Path, body: str = "*x = NUMBER;") -> nvrtc.Source:
    path = folder / "op" / "kernel.cu"
    path.parent.mkdir(exist_ok=True)
    path.write_text(f'extern "C" __global__ void kernel(int *x) {{ {body} }}\n')
    return nvrtc.Source(path, (), (("NUMBER", 5),))


@needs_nvrtc
def test_machine_code_is_kept_and_read_again(
    cache: Path, tmp_path: Path, compiled_sources: list[nvrtc.Source]
) -> None:
    source = source_at(tmp_path)
    code = nvrtc.cubin(source, "sm_90")
    assert nvrtc.cubin(source, "sm_90") == code
    assert len(compiled_sources) == 1
    assert [path.name.rsplit("-", 1)[0] for path in cache.iterdir()] == ["op-kernel-sm_90"]
    assert [path.stat().st_mode & 0o077 for path in cache.iterdir()] == [0]
    header = tmp_path / "op" / "some.cuh"
    for text in ("// one\n", "// two\n"):
        header.write_text(text)
        nvrtc.cubin(replace(source, headers=(header,)), "sm_90")
    nvrtc.cubin(replace(source, defines=(("NUMBER", 6),)), "sm_90")
    nvrtc.cubin(source, "sm_80")
    assert len(compiled_sources) == len(list(cache.iterdir())) == 5


@needs_nvrtc
@pytest.mark.parametrize("damage", ["cut", "changed", "empty"])
def test_damaged_machine_code_is_made_again(
    cache: Path, tmp_path: Path, compiled_sources: list[nvrtc.Source], damage: str
) -> None:
    source = source_at(tmp_path)
    code = nvrtc.cubin(source, "sm_90")
    (path,) = cache.iterdir()
    data = path.read_bytes()
    path.write_bytes(
        {"cut": data[:-1], "changed": data[:-1] + bytes([data[-1] ^ 1]), "empty": b""}[damage]
    )
    assert nvrtc.cubin(source, "sm_90") == code
    assert path.read_bytes() == data
    assert len(compiled_sources) == 2


@needs_nvrtc
def test_processes_that_compile_at_once_leave_one_whole_file(cache: Path, tmp_path: Path) -> None:
    source = source_at(tmp_path)
    code = (
        "import pathlib, sys\n"
        "from lit_restore.ops import nvrtc\n"
        "source = nvrtc.Source(pathlib.Path(sys.argv[1]), (), (('NUMBER', 5),))\n"
        "sys.stdout.buffer.write(nvrtc.cubin(source, 'sm_90'))"
    )
    command = [sys.executable, "-c", code, str(source.path)]
    children = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(2)]
    said = [child.communicate(timeout=120)[0] for child in children]
    assert said == [nvrtc.cubin(source, "sm_90")] * 2
    assert len(list(cache.iterdir())) == 1


@needs_nvrtc
def test_without_a_place_to_write_it_is_compiled_every_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compiled_sources: list[nvrtc.Source]
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LIT_RESTORE_CACHE", str(tmp_path / "file"))
    source = source_at(tmp_path)
    assert nvrtc.cubin(source, "sm_90") == nvrtc.cubin(source, "sm_90")
    assert len(compiled_sources) == 2


@needs_nvrtc
def test_what_nvrtc_refuses_is_one_line(cache: Path, tmp_path: Path) -> None:
    with pytest.raises(nvrtc.NvrtcError, match=r"kernel\.cu.*nothing.* undefined") as caught:
        nvrtc.cubin(source_at(tmp_path, "*x = nothing;"), "sm_90")
    assert "\n" not in str(caught.value)
    assert list(cache.iterdir()) == []


@needs_nvrtc
def test_architecture_is_the_devices_or_an_older_of_its_generation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(nvrtc, "supported", lambda: (80, 86, 90, 100, 120))
    found = [nvrtc.architecture(c) for c in ((8, 0), (8, 9), (9, 0), (10, 3), (7, 5), (13, 0))]
    assert found == ["sm_80", "sm_86", "sm_90", "sm_100", None, None]


def test_no_bindings_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    monkeypatch.setitem(sys.modules, "cuda.bindings.nvrtc", None)
    with pytest.raises(nvrtc.NvrtcError, match=r"^NVRTC cannot be loaded: .*cuda"):
        nvrtc._compiler("nvrtcVersion")


def test_launch_passes_the_argument_by_value_on_the_current_stream(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Two(ctypes.Structure):
        _fields_ = [("first", ctypes.c_int), ("second", ctypes.c_int)]

    made: list[tuple[object, ...]] = []

    def driver(function: str, *args: Any) -> tuple[object, ...]:
        made.append((function, *args))
        if function == "cuLaunchKernel":
            pointer = ctypes.cast(args[9], ctypes.POINTER(ctypes.POINTER(Two)))
            made.append((pointer[0].contents.first, pointer[0].contents.second))
            if args[1] == 0:
                raise nvrtc.NvrtcError("cuLaunchKernel failed")
        return ()

    device = torch.device("cuda", 1)
    streams = {device: SimpleNamespace(cuda_stream=77)}
    monkeypatch.setattr(nvrtc, "_driver", driver)
    monkeypatch.setattr(torch.cuda, "current_stream", streams.__getitem__)
    kernel = nvrtc.Kernel("function", "context", device)
    kernel.launch(6, 64, Two(3, 4))
    assert made[0] == ("cuCtxPushCurrent", "context")
    assert made[1][:9] == ("cuLaunchKernel", "function", 6, 1, 1, 64, 1, 1, 0)
    assert made[1][9] == 77
    assert made[2:] == [(3, 4), ("cuCtxPopCurrent",)]
    with pytest.raises(nvrtc.NvrtcError):
        kernel.launch(0, 64, Two(3, 4))
    assert made[-1] == ("cuCtxPopCurrent",)


# ---- on a GPU


@needs_gpu
@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("channels", "states"), [(1024, 16), (33, 5), (70, 64)])
@pytest.mark.parametrize("per", [1, 2])
def test_gpu_is_the_recurrence_every_time_alike(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, channels: int, states: int, per: int
) -> None:
    monkeypatch.setattr(cuda, "ENOUGH", 0 if per == 2 else 1 << 60)
    x = Sizes(batch=4, length=250, groups=2, channels=channels, states=states, dtype=dtype)
    s, grad = example(x)
    s = replace(s, index=orders(x))
    exact = double(s)
    there = mapped(s, lambda t: t.cuda())
    most = 1e-5 if dtype == torch.float32 else 2e-2
    runs = []
    for _ in range(2):
        out = cuda.forward(there, save=True)
        back = cuda.backward(there, grad.cuda(), out[2])
        runs.append([*out, *(getattr(back, field.name) for field in fields(back))])
    true = reference.forward(exact, save=True)
    slopes = reference.backward(exact, grad.double(), true[2])
    expected = [*true, *(getattr(slopes, field.name) for field in fields(slopes))]
    for a, b in zip(runs[0], expected, strict=True):
        assert relative(a.cpu(), b) < most
    for first, second in pairwise(runs):
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@needs_gpu
@pytest.mark.gpu
def test_gpu_computes_on_the_current_stream_and_in_other_threads() -> None:
    s, grad = example(replace(FULL, channels=1024))
    leaves = [t.cuda().requires_grad_() for t in (s.u, s.dt, s.A, s.B, s.C)]
    from lit_restore.ops import selective_scan

    u, dt, A, B, C = leaves
    expected = selective_scan(u, dt, A, B, C, backend="reference")
    wanted = torch.autograd.grad(expected, leaves, grad.cuda())
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        y = selective_scan(u, dt, A, B, C, backend="cuda")
        found = torch.autograd.grad(y, leaves, grad.cuda())
    torch.cuda.synchronize()
    assert relative(y, expected) < 1e-4
    assert all(relative(a, b) < 1e-4 for a, b in zip(found, wanted, strict=True))
