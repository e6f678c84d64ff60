"""The causal convolution against PyTorch's, and the laws of its order."""

from __future__ import annotations

import pytest
import torch
from scan_cases import BACKENDS, CPU, gradients, relative
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional as F

from lit_restore.errors import UserError
from lit_restore.ops import causal_conv
from lit_restore.ops.causal_conv.op import conv_op
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


def draw(
    length: int = 13, channels: int = 5, taps: int = 4, dtype: torch.dtype = torch.float64,
    groups: int | None = None,
) -> list[Tensor]:  # fmt: skip
    """x, weight and bias, leaves."""
    generator = torch.Generator().manual_seed(0)
    inner = (channels,) if groups is None else (groups, channels)
    shapes = [(3, length, *inner), (*inner, taps), inner]
    return [
        torch.randn(s, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
        for s in shapes
    ]


def torchs(x: Tensor, weight: Tensor, bias: Tensor | None, *, silu: bool = True) -> Tensor:
    """PyTorch's convolution in float64."""
    x, weight = x.double(), weight.double()
    y = F.conv1d(
        x.mT, weight[:, None], None if bias is None else bias.double(),
        padding=weight.shape[-1] - 1, groups=x.shape[-1],
    )[..., : x.shape[1]].mT  # fmt: skip
    return F.silu(y) if silu else y


@pytest.mark.parametrize("backend", ["reference", *KERNELS], indirect=True)
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 2e-6), (torch.float64, 1e-13)])
@pytest.mark.parametrize(
    ("length", "channels", "taps"), [(13, 5, 4), (1, 16, 4), (3, 33, 7), (40, 32, 1), (9, 17, 2)]
)
def test_conv_is_that_of_pytorch(
    backend: str, dtype: torch.dtype, bound: float, length: int, channels: int, taps: int
) -> None:
    args = draw(length, channels, taps, dtype)
    y, true = causal_conv(*args, backend=backend), torchs(*args)
    assert y.dtype == dtype
    assert relative(y, true) < bound
    pairs = zip(gradients(y, args), gradients(true, args), strict=True)
    assert max(relative(a, b) for a, b in pairs) < bound


@pytest.mark.parametrize("backend", ["reference", *KERNELS], indirect=True)
def test_bias_and_activation_are_optional(backend: str) -> None:
    x, weight, _ = draw()
    y = causal_conv(x, weight, activation=None, backend=backend)
    true = torchs(x, weight, None, silu=False)
    assert relative(y, true) < 1e-13
    pairs = zip(gradients(y, [x, weight]), gradients(true, [x, weight]), strict=True)
    assert max(relative(a, b) for a, b in pairs) < 1e-13


@pytest.mark.parametrize("backend", ["reference", *KERNELS], indirect=True)
def test_gradcheck_along_an_index_with_groups(backend: str) -> None:
    args = draw(length=7, channels=3, groups=2)
    index = torch.stack(
        [torch.arange(6, -1, -1), torch.randperm(7, generator=torch.Generator().manual_seed(1))]
    )

    def conv(*args: Tensor) -> Tensor:
        return causal_conv(*args, index=index, backend=backend)

    assert torch.autograd.gradcheck(conv, args, fast_mode=True)


@pytest.mark.parametrize("backend", BACKENDS)
def test_index_is_gather_conv_scatter_for_each_group(backend: str) -> None:
    x, weight, bias = draw(groups=2)
    generator = torch.Generator().manual_seed(1)
    index = torch.stack([torch.randperm(13, generator=generator) for _ in range(2)])
    y = causal_conv(x, weight, bias, index.int(), backend=backend)
    for g in range(2):
        expected = torch.empty_like(x[:, :, g])
        expected[:, index[g]] = torchs(x[:, index[g], g], weight[g], bias[g])
        assert relative(y[:, :, g], expected) < 1e-13
    flipped = causal_conv(x, weight, bias, torch.arange(12, -1, -1), backend=backend)
    assert torch.equal(flipped, causal_conv(x.flip(1), weight, bias, backend=backend).flip(1))


@pytest.mark.parametrize("backend", BACKENDS)
def test_half_of_a_projection_is_read_as_it_lies(backend: str) -> None:
    x, weight, bias = draw()
    half = torch.cat([x, x], -1).chunk(2, -1)[1]
    assert (
        relative(causal_conv(half, weight, bias, backend=backend), torchs(x, weight, bias)) < 1e-13
    )
    major = x.mT.contiguous().mT
    assert (
        relative(causal_conv(major, weight, bias, backend=backend), torchs(x, weight, bias)) < 1e-13
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_nan_reaches_as_many_outputs_as_there_are_taps(backend: str) -> None:
    args = draw(channels=17, dtype=torch.float32)
    with torch.no_grad():
        args[0][1, 5, 2] = torch.nan
    expected = torch.zeros(args[0].shape, dtype=torch.bool)
    expected[1, 5:9, 2] = True
    assert torch.equal(causal_conv(*args, backend=backend).isnan(), expected)


@pytest.mark.parametrize("backend", ["reference", *KERNELS], indirect=True)
def test_no_tokens_give_no_tokens(backend: str) -> None:
    args = draw(length=0)
    y = causal_conv(*args, backend=backend)
    assert y.shape == (3, 0, 5)
    assert not any(g.any() for g in torch.autograd.grad(y.sum(), args))


@pytest.mark.parametrize("backend", ["reference", *KERNELS], indirect=True)
def test_autocast_lowers_tokens_alone(backend: str) -> None:
    args = draw(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        y = causal_conv(*args, backend=backend)
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, causal_conv(args[0].bfloat16(), *args[1:], backend=backend))
    assert {g.dtype for g in gradients(y, args)} == {torch.float32}


@pytest.mark.parametrize("backend", BACKENDS)
def test_jvp_is_the_derivative_along_the_tangent(backend: str) -> None:
    args = [t.detach() for t in draw()]
    way = [torch.ones_like(t) for t in args]

    def conv(*args: Tensor) -> Tensor:
        return causal_conv(*args, backend=backend)

    eps = 1e-6
    ahead, behind = (
        conv(*(a + sign * eps * w for a, w in zip(args, way, strict=True))) for sign in (1, -1)
    )
    found = torch.func.jvp(conv, tuple(args), tuple(way))[1]
    assert relative(found, (ahead - behind) / (2 * eps)) < 1e-7
    with forward_ad.dual_level():
        dual = conv(forward_ad.make_dual(args[0], way[0]), *args[1:])
        assert forward_ad.unpack_dual(dual).tangent is not None


@pytest.mark.parametrize("backend", KERNELS, indirect=True)
def test_second_derivatives_are_refused_but_by_the_reference(backend: str) -> None:
    args = draw()
    (grad,) = torch.autograd.grad(
        causal_conv(*args, backend=backend).sum(), args[0], create_graph=True
    )
    with pytest.raises(UserError, match='say backend="reference"'):
        grad.sum().backward()
    small = draw(length=3, channels=2)
    assert torch.autograd.gradgradcheck(
        lambda *a: causal_conv(*a, backend="reference"), small, fast_mode=True
    )


@pytest.mark.parametrize("backend", ["reference", *KERNELS], indirect=True)
def test_vmap_is_a_loop(backend: str) -> None:
    x, weight, bias = (t.detach() for t in draw())
    several, weights = torch.stack([x, 2 * x]), torch.stack([weight, -weight])
    found = torch.vmap(lambda x, w: causal_conv(x, w, bias, backend=backend))(several, weights)
    true = torch.stack([torchs(a, w, bias) for a, w in zip(several, weights, strict=True)])
    assert relative(found, true) < 1e-13


@pytest.mark.parametrize("backend", BACKENDS)
def test_opcheck_and_whole_graphs(backend: str) -> None:
    args = draw(dtype=torch.float32)
    grouped = [args[0].detach()[:, :, None], args[1].detach()[None], args[2].detach()[None]]
    leaves = [t.requires_grad_() for t in grouped]
    index = torch.arange(12, -1, -1)[None]
    torch.library.opcheck(
        conv_op, (*leaves, index, True, backend),
        test_utils=("test_schema", "test_autograd_registration", "test_faketensor",
                    "test_aot_dispatch_static"),
    )  # fmt: skip
    compiled = torch.compile(
        lambda *a: causal_conv(*a, backend=backend), backend="aot_eager", fullgraph=True
    )
    assert relative(compiled(*args), torchs(*args)) < 2e-6
    torch._dynamo.reset()


@pytest.mark.parametrize("backend", [CPU])
def test_results_do_not_depend_on_the_number_of_threads(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = draw(length=600, channels=130, dtype=torch.float32)
    found = []
    for count in (1, 5):
        monkeypatch.setattr(torch, "get_num_threads", lambda count=count: count)
        y = causal_conv(*args, backend=backend)
        found.append((y, *gradients(y, args)))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_wrong_arguments_are_named() -> None:
    x, weight, bias = draw()
    with pytest.raises(UserError, match="weight is"):
        causal_conv(x, weight[:, None], bias)
    with pytest.raises(UserError, match=r"weight is torch\.complex64"):
        causal_conv(x, weight.detach().to(torch.complex64))
    with pytest.raises(UserError, match="bias is"):
        causal_conv(x, weight, bias[:2])
    with pytest.raises(UserError, match="x is"):
        causal_conv(x[0, 0], weight)
    with pytest.raises(UserError, match="activation"):
        causal_conv(x, weight, activation="relu")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="index"):
        causal_conv(x, weight, index=torch.arange(13) // 2)
