"""Wavelet packets against PyWavelets, explicit loops and their own algebra."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import pywt
import torch
from torch._subclasses import FakeTensorMode

from lit_restore.errors import UserError
from lit_restore.ops.wavelets import LAYOUTS, WaveletPacket

WAVELETS = ["haar", "db2", "sym4", "coif1", "bior2.2", "rbio3.1"]
ORTHOGONAL = ["haar", "db1", "db2", "sym4"]

every_layout = pytest.mark.parametrize("layout", LAYOUTS)


def tokens(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(3), dtype=dtype)


def pywt_bands(plane: np.ndarray, wavelet: str, levels: int) -> list[np.ndarray]:
    """PyWavelets' packet of one plane, natural order, in the units of the plane."""
    packet = pywt.WaveletPacket2D(plane, wavelet, mode="periodization", maxlevel=levels)
    nodes = ["".join(path) for path in itertools.product("ahvd", repeat=levels)]
    return [packet[node].data / 2**levels for node in nodes]


@pytest.mark.parametrize("levels", [1, 2])
@pytest.mark.parametrize("wavelet", WAVELETS)
def test_official_places_hold_the_bands_of_pywavelets(wavelet, levels):
    height, width, channels, side = 8, 12, 2 * 4**levels, 2**levels
    packet = WaveletPacket(height, width, channels, wavelet=wavelet, levels=levels)
    x = tokens(1, height * width, channels)
    out = packet(x).view(height, width, 4**levels, 2)
    for channel in range(channels):
        plane = x[0, :, channel].view(height, width).numpy()
        m, r = divmod(channel, side**2)
        for band, expected in enumerate(pywt_bands(plane, wavelet, levels)):
            found = out[r // side :: side, r % side :: side, band, m].numpy()
            np.testing.assert_allclose(found, expected, atol=1e-12)


@pytest.mark.parametrize("levels", [1, 2])
@pytest.mark.parametrize("wavelet", WAVELETS)
def test_subband_windows_hold_the_bands_of_pywavelets(wavelet, levels):
    height, width, side = 8, 12, 2**levels
    packet = WaveletPacket(height, width, 3, wavelet=wavelet, levels=levels, layout="subband")
    x = tokens(1, height * width, 3)
    out = packet(x).view(side, height // side, side, width // side, 3)
    for channel in range(3):
        plane = x[0, :, channel].view(height, width).numpy()
        bands = pywt_bands(plane, wavelet, levels)
        for path, expected in zip(itertools.product("ahvd", repeat=levels), bands, strict=True):
            i = int("".join("1" if letter in "hd" else "0" for letter in path), 2)
            j = int("".join("1" if letter in "vd" else "0" for letter in path), 2)
            np.testing.assert_allclose(out[i, :, j, :, channel].numpy(), expected, atol=1e-12)


def released_closed_form(x: np.ndarray) -> np.ndarray:
    """out[patch, r, band, m] of the released models by loops; x is (height, width, channels)."""
    height, width, channels = x.shape
    signs = [lambda a, b: 1, lambda a, b: (-1) ** a, lambda a, b: (-1) ** b,
             lambda a, b: (-1) ** (a + b)]  # fmt: skip
    out = np.zeros_like(x)
    sixteenth = channels // 16
    for y, xx, p1, p2 in itertools.product(
        range(height // 4), range(width // 4), range(4), range(4)
    ):
        for p, q, m in itertools.product(range(4), range(4), range(sixteenth)):
            total = 0.0
            for a, b in itertools.product(range(4), range(4)):
                sign = signs[p](a % 2, b % 2) * signs[q](a // 2, b // 2)
                total += sign * x[4 * y + a, 4 * xx + b, 16 * m + 4 * p1 + p2]
            out[4 * y + p1, 4 * xx + p2, (4 * p + q) * sixteenth + m] = total / 16
    return out


def test_two_level_haar_is_the_closed_form_of_the_released_models():
    x = tokens(1, 4 * 8, 32)
    expected = released_closed_form(x.view(4, 8, 32).numpy())
    np.testing.assert_allclose(
        WaveletPacket(4, 8, 32)(x).view(4, 8, 32).numpy(), expected, atol=1e-14
    )


@every_layout
@pytest.mark.parametrize("levels", [1, 2, 3])
@pytest.mark.parametrize("wavelet", WAVELETS)
def test_inverse_undoes_forward_both_ways(wavelet, levels, layout):
    packet = WaveletPacket(16, 8, 64, wavelet=wavelet, levels=levels, layout=layout)
    x = tokens(2, 128, 64)
    assert (packet.inverse(packet(x)) - x).abs().max() < 1e-12
    assert (packet(packet.inverse(x)) - x).abs().max() < 1e-12


@every_layout
@pytest.mark.parametrize("wavelet", ORTHOGONAL)
def test_orthogonal_wavelets_divide_every_inner_product_by_four_to_the_levels(wavelet, layout):
    for levels in (1, 2):
        packet = WaveletPacket(8, 8, 16, wavelet=wavelet, levels=levels, layout=layout)
        x, y = tokens(2, 1, 64, 16)
        product = (packet(x) * packet(y)).sum() * 4**levels
        # sym4's filters are orthogonal to 1e-12 as PyWavelets gives them.
        assert float(product) == pytest.approx(float((x * y).sum()), abs=1e-9)


@pytest.mark.parametrize("wavelet", WAVELETS)
def test_a_constant_is_itself_in_window_zero_and_nothing_elsewhere(wavelet):
    packet = WaveletPacket(8, 16, 3, wavelet=wavelet, layout="subband")
    value = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    out = packet(value.expand(1, 128, 3)).view(4, 2, 4, 4, 3)
    assert (out[0, :, 0] - value).abs().max() < 1e-9
    out[0, :, 0] = 0
    assert out.abs().max() < 1e-9


def test_haar_window_zero_is_the_mean_of_each_patch():
    x = tokens(2, 8 * 12, 3)
    low = WaveletPacket(8, 12, 3, layout="subband")(x).view(2, 4, 2, 4, 3, 3)[:, 0, :, 0]
    assert (low - x.view(2, 2, 4, 3, 4, 3).mean(dim=(2, 4))).abs().max() < 1e-14


@every_layout
def test_db1_and_the_dense_path_agree_with_haar(layout):
    # bior1.1 is Haar by other filters, and goes the dense way.
    x = tokens(2, 64, 16)
    haar = WaveletPacket(8, 8, 16, layout=layout)
    for name in ("db1", "bior1.1"):
        other = WaveletPacket(8, 8, 16, wavelet=name, layout=layout)
        assert (other(x) - haar(x)).abs().max() < 1e-12
        assert (other.inverse(x) - haar.inverse(x)).abs().max() < 1e-12


@every_layout
@pytest.mark.parametrize("wavelet", ["haar", "db2"])
def test_half_precision_keeps_its_type_and_rounds_only(wavelet, layout):
    packet = WaveletPacket(8, 8, 16, wavelet=wavelet, layout=layout)
    x = tokens(2, 64, 16)
    for dtype, tolerance in ((torch.float32, 1e-6), (torch.bfloat16, 3e-2)):
        out = packet(x.to(dtype))
        assert out.dtype == packet.inverse(out).dtype == dtype
        assert (out.double() - packet(x.to(dtype).double())).abs().max() < tolerance


def test_haar_is_exact_after_a_detour_through_half_precision():
    packet = WaveletPacket(8, 8, 16)
    x = tokens(1, 64, 16)
    expected = packet(x)
    assert torch.equal(packet.bfloat16().double()(x), expected)


def test_nothing_to_learn_and_nothing_to_save():
    packet = WaveletPacket(8, 8, 16, wavelet="db2")
    assert packet.state_dict() == {}
    assert list(packet.parameters()) == []


def test_matrices_have_values_in_a_network_planned_without_memory():
    with torch.device("meta"):
        packets = [WaveletPacket(8, 8, 16, wavelet=w) for w in ("haar", "db2")]
    x = tokens(1, 64, 16)
    assert all((p.inverse(p(x)) - x).abs().max() < 1e-12 for p in packets)


def test_matrices_are_made_on_the_default_device_as_parameters_are():
    # Fake tensors know devices that are not there.
    with FakeTensorMode(allow_non_fake_inputs=True), torch.device("cuda"):
        packets = [WaveletPacket(8, 8, 16, wavelet=w) for w in ("haar", "db2")]
        assert {b.device.type for p in packets for b in p.buffers()} == {"cuda"}


@every_layout
@pytest.mark.parametrize("wavelet", ["haar", "db2"])
def test_gradient_is_the_transpose_also_of_views_and_empty_batches(wavelet, layout):
    packet = WaveletPacket(4, 8, 16, wavelet=wavelet, layout=layout)
    wide = tokens(2, 32, 32).requires_grad_()
    x, g = wide[..., 16:], tokens(2, 32, 16)
    for function in (packet, packet.inverse):
        (gradient,) = torch.autograd.grad((function(x) * g).sum(), wide)
        shift = tokens(2, 32, 16).flip(0)
        change = (function(x + shift) - function(x)).mul(g).sum().detach()
        assert float((gradient[..., 16:] * shift).sum()) == pytest.approx(float(change), rel=1e-9)
        assert not gradient[..., :16].any()
        assert function(x[:0]).shape == (0, 32, 16)


@every_layout
@pytest.mark.parametrize("wavelet", ["haar", "db2"])
def test_compiles_as_one_graph(wavelet, layout):
    packet = WaveletPacket(4, 8, 16, wavelet=wavelet, layout=layout)
    compiled = torch.compile(
        lambda x: packet.inverse(2 * packet(x)), fullgraph=True, backend="aot_eager"
    )
    x = tokens(2, 32, 16)
    assert (compiled(x) - 2 * x).abs().max() < 1e-12


@pytest.mark.parametrize(
    ("options", "where", "text"),
    [
        ((6, 8, 16, {}), "levels", "2 do not fit a grid of 6x8 tokens"),
        ((8, 12, 64, {"levels": 3}), "levels", "3 do not fit a grid of 8x12 tokens"),
        ((8, 8, 24, {}), "levels", "layout official needs a multiple of 4\\^2"),
        ((8, 8, 16, {"levels": 0}), "levels", "0 is below 1"),
        ((8, 8, 16, {"levels": 10**9}), "levels", "do not fit a grid"),
        ((8, 8, 16, {"wavelet": "db99"}), "wavelet", "'db99' is no discrete wavelet"),
        ((8, 8, 16, {"wavelet": "mexh"}), "wavelet", "'mexh' is no discrete wavelet"),
        ((8, 8, 16, {"layout": "bands"}), "layout", "'bands' is neither of official, subband"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(options, where, text):
    *sizes, named = options
    with pytest.raises(UserError, match=text) as caught:
        WaveletPacket(*sizes, **named)
    assert caught.value.where == where
    assert "\n" not in str(caught.value)
