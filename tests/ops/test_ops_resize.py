"""MATLAB's `imresize`, bit by bit (golden values: spec evaluation.md §1.4)."""

from __future__ import annotations

import hashlib
import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from lit_restore.ops.resize import imresize, imresize_pixels, taps

DEV_VAL = Path(__file__).parents[2].parent / "shared" / "data" / "dev_val.tar"


def sha(array: np.ndarray, digits: int = 12) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()[:digits]


def golden_picture() -> np.ndarray:
    y, x = np.mgrid[0:64, 0:96]
    channels = [(x * 5 + y * 3) % 256, (x * y // 7) % 256, (x * x // 11 + y * 2) % 256]
    return np.stack(channels, -1).astype(np.uint8)


def cut(pixels: np.ndarray, multiple: int) -> np.ndarray:
    height, width = (side // multiple * multiple for side in pixels.shape[:2])
    return pixels[:height, :width]


GOLDEN = {
    1 / 2: (533374, "74f7e77d006f"),
    1 / 3: (232481, "ea6070fc07e3"),
    1 / 4: (133250, "aac276aad430"),
    2: (8529413, "56d5187cd5b9"),
    3: (19159206, "21436aa32cae"),
    4: (34066840, "96cde511dd41"),
}


@pytest.mark.parametrize("scale", GOLDEN)
def test_uint8_is_matlabs_to_the_bit(scale: float) -> None:
    resized = imresize_pixels(cut(golden_picture(), max(1, round(1 / scale))), scale)
    assert (int(resized.sum()), sha(resized)) == GOLDEN[scale]


def without_rounding_between(pixels: np.ndarray, scale: float) -> np.ndarray:
    exact = imresize_pixels(pixels.astype(np.float64), scale)
    return np.floor(exact.clip(0, 255) + 0.5).astype(np.uint8)


def width_first(pixels: np.ndarray, scale: float) -> np.ndarray:
    return imresize_pixels(pixels.transpose(1, 0, 2), scale).transpose(1, 0, 2)


def torch_antialias(pixels: np.ndarray, scale: float) -> np.ndarray:
    x = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].double()
    y = F.interpolate(x, scale_factor=scale, mode="bicubic", antialias=True)
    return (y + 0.5).floor().clamp(0, 255)[0].permute(1, 2, 0).numpy().astype(np.uint8)


@pytest.mark.parametrize("other", [without_rounding_between, width_first, torch_antialias])
def test_what_others_do_is_not_matlabs(other) -> None:
    pixels = cut(golden_picture(), 4)
    assert sha(other(pixels, 1 / 4)) != GOLDEN[1 / 4][1]
    assert np.abs(other(pixels, 1 / 4).astype(int) - imresize_pixels(pixels, 1 / 4)).max() <= 20


PHOTOGRAPHS = {
    "astronaut": ("a8c429c18afa", "53ca505a86fd", "5c8f6d4f3617"),
    "chelsea": ("22f9930afdeb", "6b81de91ea08", "cfe2faab06c6"),
    "coffee": ("0ce2b51640b9", "5c42e9762536", "2bd4e4bb1e11"),
}


@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_photographs_down_and_up_again(name: str) -> None:
    import skimage.data

    hr = cut(getattr(skimage.data, name)()[..., :3], 4)
    lr = imresize_pixels(hr, 1 / 4)
    assert (sha(hr), sha(lr), sha(imresize_pixels(lr, 4))) == PHOTOGRAPHS[name]


def test_all_matlab_made_set5() -> None:
    if not DEV_VAL.exists():
        pytest.skip("needs ../shared/data/dev_val.tar")
    lr = b""
    with tarfile.open(DEV_VAL) as tar:
        members = {Path(m.name).stem: m for m in tar if m.name.startswith("set5/")}
        for name in ("baby", "bird", "butterfly", "head", "woman"):
            found = next(m for stem, m in members.items() if name in stem)
            data = io.BytesIO(tar.extractfile(found).read())
            pixels = np.asarray(Image.open(data, formats=("PNG", "WEBP", "JPEG")).convert("RGB"))
            for factor in (2, 3, 4):
                lr += imresize_pixels(cut(pixels, factor), 1 / factor).tobytes()
    assert hashlib.sha256(lr).hexdigest()[:16] == "ae92ca60b1197aaf"


def test_float_values_are_matlabs() -> None:
    ramp = imresize_pixels(np.arange(64.0).reshape(8, 8), 0.5)[0]
    assert ramp == pytest.approx([4.042969, 6.082031, 8.105469, 10.144531], abs=1e-6)
    square = imresize_pixels(np.arange(16.0).reshape(4, 4) ** 2, 2)[0]
    expected = [-1.523438, -1.501953, -1.458984, -0.875, 0.25, 2.021484, 4.439453, 5.648438]
    assert square == pytest.approx(expected, abs=1e-6)
    impulse = np.zeros((8, 8))
    impulse[0, 0] = 1
    corner = imresize_pixels(impulse, 0.5)[:2, :2].ravel()
    assert corner == pytest.approx([0.299072, -0.025635, -0.025635, 0.002197], abs=1e-6)


def test_quarter_taps_are_matlabs() -> None:
    index, weights = taps(64, 1 / 4)
    used = weights[8][weights[8] != 0]
    half = [-0.001709, -0.010986, -0.018311, -0.011963, 0.022705, 0.097412, 0.181885, 0.240967]
    assert used.tolist() == pytest.approx(half + half[::-1], abs=1e-6)
    assert (index[8].diff() == 1).all()


@pytest.mark.parametrize("scale", [0.13, 0.5, 1.0, 1.7, 3.0])
@pytest.mark.parametrize("size", [(1, 1), (3, 17), (40, 9)])
def test_any_scale_keeps_constants_and_has_the_stated_size(
    scale: float, size: tuple[int, int]
) -> None:
    out = imresize(torch.full((2, 1, *size), 0.7, dtype=torch.float64), scale)
    assert out.shape[2:] == tuple(int(np.ceil(scale * side)) for side in size)
    assert torch.allclose(out, torch.full_like(out, 0.7), atol=1e-14)


def test_scale_one_is_the_identity() -> None:
    x = torch.rand(2, 3, 7, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.equal(imresize(x, 1.0), x)


def test_unequal_scales_start_with_the_smaller() -> None:
    pixels = torch.from_numpy(golden_picture()).permute(2, 0, 1)
    narrow = imresize(imresize(pixels, (1.0, 0.5)), (2.0, 1.0))
    assert torch.equal(imresize(pixels, (2.0, 0.5)), narrow)


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan")])
def test_impossible_scales_are_refused(scale: float) -> None:
    with pytest.raises(ValueError, match="cannot resize"):
        imresize(torch.zeros(1, 4, 4), scale)
