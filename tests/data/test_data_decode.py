"""Which decoder reads a JPEG, and what is refused as an array."""

from __future__ import annotations

import io

import numpy as np
import pytest
from conftest import encoded, picture
from PIL import Image

from lit_restore.data.decode import DECODER, decode_array, decode_image, decoder_name
from lit_restore.errors import UserError
from lit_restore.io import arrays


def test_pillow_decodes_where_the_environment_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(picture(0, 64, 80), "jpg")
    default = decode_image(data, name="x")
    assert decoder_name().startswith("simplejpeg-")
    monkeypatch.setenv(DECODER, "pillow")
    assert decoder_name().startswith("pillow-")
    pixels = decode_image(data, name="x")
    with Image.open(io.BytesIO(data)) as image:
        np.testing.assert_array_equal(pixels, np.asarray(image))
    assert np.abs(pixels.astype(int) - default).max() <= 1


@pytest.mark.parametrize("kind", ["png", "jpg"])
def test_a_grey_picture_is_three_equal_channels(kind: str) -> None:
    grey = picture(0)[..., 0]
    pixels = decode_image(encoded(grey, kind), name="x")
    assert pixels.shape == (*grey.shape, 3)
    assert pixels.flags.writeable
    assert (pixels == pixels[..., :1]).all()


def block(marker: int, content: bytes) -> bytes:
    return bytes([0xFF, marker]) + (len(content) + 2).to_bytes(2, "big") + content


@pytest.mark.parametrize(
    "before",
    [
        b"",
        block(0xFE, b"a scan's marker \xff\xda in a remark"),
        block(0xE1, b"http://ns.adobe.com/xap/1.0/"),
        b"\xff\xff",
    ],
)
def test_a_turned_jpeg_is_upright_whatever_stands_before_its_exif(before: bytes) -> None:
    plain, exif = encoded(picture(0, 40, 48), "jpg"), Image.Exif()
    exif[0x0112] = 6
    turned = plain[:2] + before + block(0xE1, exif.tobytes()) + plain[2:]
    assert decode_image(turned, name="x").shape == (48, 40, 3)
    untouched = plain[:2] + before + plain[2:]
    assert decode_image(untouched, name="x").shape == (40, 48, 3)


def test_an_array_that_pytorch_has_not_is_one_line() -> None:
    good = arrays.npy_bytes(np.arange(3, dtype=np.float16))
    np.testing.assert_array_equal(decode_array(good, name="x"), [0, 1, 2])
    for bad in (np.array(["x"]), np.zeros(3, np.longdouble), np.zeros(3, "M8[s]")):
        with pytest.raises(UserError, match=r"^x: holds .*, not numbers that PyTorch has$"):
            decode_array(arrays.npy_bytes(bad), name="x")
