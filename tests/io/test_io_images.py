"""Pictures are read as they are stored or not at all; headers are checked before decoders."""

from __future__ import annotations

import io
import random
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageFile, ImageOps

from lit_restore.errors import UserError
from lit_restore.io.images import (
    jpeg_bytes,
    png_bytes,
    read_picture,
    sniff,
    webp_bytes,
    write_png,
)
from lit_restore.io.png16 import decode_png16

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (37, 53, 3), dtype=np.uint8)
GREY = RGB[..., :1]
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def saved(image: Image.Image | np.ndarray, format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    image.save(buffer, format, **options)
    return buffer.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png16(pixels: np.ndarray, *chunks: bytes, filters: bytes = b"\0", interlaced: int = 0) -> bytes:
    """A 16-bit PNG of 1 to 4 channels, its rows filtered in turn by `filters`."""
    height, width, channels = pixels.shape
    colour = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    step, above, rows = 2 * channels, bytes(2 * channels * width), []
    for y in range(height):
        row, kind = pixels[y].astype(">u2").tobytes(), filters[y % len(filters)]
        coded = bytes(
            (value - predicted(kind, row, above, i, step)) % 256 for i, value in enumerate(row)
        )
        rows.append(bytes([kind]) + coded)
        above = row
    header = struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, interlaced)
    packed = zlib.compress(b"".join(rows))
    body = [chunk(b"IHDR", header), *chunks]
    body += [chunk(b"IDAT", packed[i : i + 1000]) for i in range(0, len(packed), 1000)]
    return b"\x89PNG\r\n\x1a\n" + b"".join(body) + chunk(b"IEND", b"")


def predicted(kind: int, row: bytes, above: bytes, i: int, step: int) -> int:
    """The five PNG filters, byte by byte."""
    left, corner = (row[i - step], above[i - step]) if i >= step else (0, 0)
    up = above[i]
    estimate = left + up - corner
    paeth = min((left, up, corner), key=lambda value: abs(estimate - value))
    return (0, left, up, (left + up) // 2, paeth)[kind]


def deep(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 65536, shape, dtype=np.uint16)


def refusal(data: bytes, **options: object) -> str:
    with pytest.raises(UserError) as caught:
        read_picture(data, name="x", **options)
    assert caught.value.where == "x"
    return caught.value.message


def unreadable(why: str) -> str:
    return f"not a readable JPEG, PNG or WebP ({why})"


# Headers ------------------------------------------------------------------------------------------

VARIANTS = {
    "jpeg": lambda im: saved(im, "JPEG"),
    "jpeg grey": lambda im: saved(im.convert("L"), "JPEG"),
    "jpeg progressive": lambda im: saved(im, "JPEG", progressive=True),
    "jpeg cmyk": lambda im: saved(im.convert("CMYK"), "JPEG"),
    "jpeg exif icc": lambda im: saved(im, "JPEG", icc_profile=SRGB, comment=b"\xff\xc0\0\x11" * 9),
    "png": lambda im: saved(im, "PNG"),
    "png grey": lambda im: saved(im.convert("L"), "PNG"),
    "png alpha": lambda im: saved(im.convert("RGBA"), "PNG"),
    "png grey alpha": lambda im: saved(im.convert("LA"), "PNG"),
    "png palette": lambda im: saved(im.convert("P"), "PNG"),
    "png bit": lambda im: saved(im.convert("1"), "PNG"),
    "webp lossy": lambda im: saved(im, "WEBP", quality=50),
    "webp lossless": lambda im: saved(im, "WEBP", lossless=True),
    "webp extended": lambda im: saved(im, "WEBP", icc_profile=SRGB),
    "webp alpha": lambda im: saved(im.convert("RGBA"), "WEBP", lossless=True),
}  # fmt: skip


@pytest.mark.parametrize("size", [(1, 1), (53, 37), (1023, 2), (16383, 1)])
@pytest.mark.parametrize("variant", VARIANTS)
def test_header_says_what_pillow_says(variant: str, size: tuple[int, int]) -> None:
    data = VARIANTS[variant](Image.fromarray(RGB).resize(size))
    with Image.open(io.BytesIO(data)) as image:
        header = sniff(data, name="x")
        assert (header.format, header.width, header.height) == (image.format, *image.size)
    bits = {"png bit": 1}.get(variant, 8)
    channels = {"jpeg grey": 1, "jpeg cmyk": 4, "png alpha": 4, "png bit": 1, "png grey": 1}
    channels |= {"png grey alpha": 2}
    assert header.bits == bits
    if not variant.startswith("webp"):
        assert header.channels == channels.get(variant, 3)


HUGE = struct.pack(">II", 20_000, 20_000)
JPEG, PNG, WEBP = saved(RGB, "JPEG"), saved(RGB, "PNG"), saved(RGB, "WEBP", lossless=True)
BAD_HEADERS = {
    "img_empty": (b"", unreadable("empty file")),
    "img_cut_jpeg": (JPEG[:100], unreadable("truncated")),
    "img_cut_magic": (JPEG[:2], unreadable("truncated")),
    "img_cut_png": (PNG[:20], unreadable("truncated")),
    "img_cut_webp": (WEBP[:22], unreadable("truncated")),
    "img_text": (b"hello, world", unreadable("text")),
    "img_html": (b"<!DOCTYPE html><svg/>", unreadable("SVG")),
    "img_page": (b"<html>not found</html>", unreadable("HTML page")),
    "img_svg": (b'<?xml version="1.0"?>\n<svg xmlns="x"/>', unreadable("SVG")),
    "img_gif": (saved(RGB, "GIF"), unreadable("GIF")),
    "img_bmp": (saved(RGB, "BMP"), unreadable("BMP")),
    "img_eps": (saved(RGB, "EPS"), unreadable("EPS")),
    "img_avif": (b"\0\0\0\x20ftypavif" + bytes(99), unreadable("avif file")),
    "img_noise": (bytes(range(128, 256)), unreadable("unknown format")),
    "img_400mp": (PNG[:16] + HUGE + PNG[24:], "20000x20000 is above 50 megapixels"),
    "img_0": (PNG[:16] + bytes(4) + PNG[20:], unreadable("0x37")),
    "img_riff": (b"RIFF\x24\0\0\0WEBPVP9 " + bytes(40), unreadable("damaged header")),
    "img_jpeg_early": (b"\xff\xd8\xff\xda\0\x08" + bytes(60), unreadable("damaged header")),
    "img_jpeg_lossless": (b"\xff\xd8\xff\xc3\0\x11" + bytes(60), unreadable("damaged header")),
    "img_jpeg_loop": (b"\xff\xd8\xff\xe0\0\0" + bytes(60), unreadable("damaged header")),
}


@pytest.mark.parametrize("case", BAD_HEADERS)
def test_bad_header_is_one_line(case: str) -> None:
    data, message = BAD_HEADERS[case]
    with pytest.raises(UserError) as caught:
        sniff(data, name="x")
    assert (caught.value.message, caught.value.where) == (message, "x")
    if case != "img_400mp":
        assert refusal(data) == message


def test_bomb_is_refused_before_a_decoder_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def decoder(*args: object, **options: object) -> None:
        raise AssertionError("a decoder was asked")

    jpeg = bytearray(JPEG)
    at = jpeg.index(b"\xff\xc0")
    jpeg[at + 5 : at + 9] = struct.pack(">HH", 20_000, 20_000)
    lossless = bytearray(WEBP)
    lossless[21:25] = struct.pack("<I", 16383 | 16383 << 14)
    monkeypatch.setattr(Image, "open", decoder)
    for data in (BAD_HEADERS["img_400mp"][0], bytes(jpeg), bytes(lossless)):
        assert refusal(data).endswith("is above 50 megapixels")
    with pytest.raises(AssertionError, match="a decoder was asked"):
        read_picture(PNG)


@settings(max_examples=400, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32), which=st.sampled_from([JPEG, PNG, WEBP, png16(deep(5, 4, 3))]))
def test_damaged_picture_gives_pixels_of_the_header_or_one_error(seed: int, which: bytes) -> None:
    rng = random.Random(seed)
    data = bytearray(which)
    for _ in range(rng.randint(1, 4)):
        data[min(int(rng.expovariate(0.02)), len(data) - 1)] = rng.randrange(256)
    if rng.random() < 0.3:
        del data[rng.randrange(len(data)) :]
    try:
        header = sniff(bytes(data), name="x")
        picture = read_picture(bytes(data), background="white")
    except UserError:
        return
    assert sorted(picture.pixels.shape[:2]) == sorted((header.height, header.width))
    assert picture.pixels.shape[2] in (1, 3)


# The reading table --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_lossless_formats_give_the_stored_pixels(kind: str) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    picture = read_picture(saved(RGB, kind, **options))
    assert np.array_equal(picture.pixels, RGB)
    assert (picture.pixels.dtype, picture.profile) == (np.uint8, None)
    assert picture.pixels.flags.writeable


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "JPEG"])
def test_grey_stays_one_channel(kind: str) -> None:
    picture = read_picture(saved(GREY[..., 0], kind))
    assert picture.pixels.shape == GREY.shape
    if kind != "JPEG":
        assert np.array_equal(picture.pixels, GREY)


def test_path_and_bytes_are_read_alike(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(PNG)
    picture = read_picture(path)
    assert picture.name == str(path)
    assert np.array_equal(picture.pixels, read_picture(PNG).pixels)
    with pytest.raises(UserError, match=r"b\.png"):
        read_picture(tmp_path / "b.png")


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_transparency_is_an_error_or_laid_on_the_background(mode: str, kind: str) -> None:
    alpha = np.full((37, 53), 255, np.uint8)
    image = Image.fromarray(RGB).convert("L" if mode == "LA" else "RGB").convert("RGBA")
    opaque = image.convert("RGB").quantize() if mode == "P" else image.convert(mode)
    alpha[3, 4], alpha[5, 6] = 0, 128
    image.putalpha(Image.fromarray(alpha))
    clear = image.quantize(method=Image.Quantize.FASTOCTREE) if mode == "P" else image.convert(mode)
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    data = saved(clear, kind, **options)
    assert refusal(data).startswith("is partly transparent; give a background")
    white = Image.new("RGBA", image.size, "white")
    expected = np.asarray(Image.alpha_composite(white, clear.convert("RGBA")).convert("RGB"), int)
    found = read_picture(data, background="white").pixels
    assert found[3, 4].tolist() == [255] * found.shape[2]
    assert np.abs(found.astype(int) - expected).max() <= 1
    dropped = np.asarray(clear.convert("RGB"))  # the negative control
    assert np.abs(dropped.astype(int) - expected).max() > 20
    twin = read_picture(saved(opaque, kind, **options)).pixels
    assert np.array_equal(twin, np.asarray(opaque.convert("RGB"))[..., : twin.shape[2]])


def test_background_must_be_a_colour() -> None:
    image = Image.new("RGBA", (2, 2), (0, 0, 0, 0))
    assert read_picture(saved(image, "PNG"), background="#102030").pixels[0, 0].tolist() == [
        16,
        32,
        48,
    ]
    with pytest.raises(UserError, match="background: whitish is not a colour"):
        read_picture(saved(image, "PNG"), background="whitish")


@pytest.mark.parametrize("channels", [1, 3])
def test_sixteen_bit_png_keeps_all_bits(channels: int) -> None:
    pixels = deep(6, 7, channels)
    data = png16(pixels)
    found = read_picture(data).pixels
    assert found.dtype == np.uint16
    assert np.array_equal(found, pixels)
    with Image.open(io.BytesIO(data)) as image:  # the negative control
        high = np.asarray(image.convert("RGB"))
    assert not np.array_equal(high[..., :channels] * np.uint16(257), pixels)


@pytest.mark.parametrize("filters", [b"\1", b"\2", b"\3", b"\4", b"\4\0\3\1\2"])
@pytest.mark.parametrize("shape", [(23, 31, 3), (31, 9, 1), (5, 40, 4), (1, 6, 2), (6, 1, 3)])
def test_every_filter_of_a_sixteen_bit_png_is_undone(
    filters: bytes, shape: tuple[int, int, int]
) -> None:
    smooth = np.add.outer(np.arange(shape[0]) * 900, np.arange(shape[1]) * 700)[..., None]
    pixels = (smooth + deep(*shape) % 500).astype(np.uint16)
    assert np.array_equal(decode_png16(png16(pixels, filters=filters)), pixels)


def test_sixteen_bit_grey_agrees_with_pillow() -> None:
    pixels = deep(40, 30, 1)
    data = saved(pixels[..., 0], "PNG")  # Pillow writes it with filters of its choice
    assert np.array_equal(decode_png16(data), pixels)
    with Image.open(io.BytesIO(data)) as image:
        assert np.array_equal(np.asarray(image), decode_png16(data)[..., 0])


def test_interlaced_sixteen_bit_png_is_refused_with_a_mend() -> None:
    data = png16(deep(1, 1, 3), interlaced=1)  # one pixel is its own interlacing
    message = refusal(data)
    assert message == unreadable("interlaced 16-bit PNG, save it without interlacing")


@pytest.mark.parametrize("channels", [2, 4])
def test_sixteen_bit_alpha_is_treated_like_eight(channels: int) -> None:
    pixels = deep(6, 7, channels)
    pixels[..., -1] = 65535
    assert np.array_equal(read_picture(png16(pixels)).pixels, pixels[..., :-1])
    pixels[2, 3, -1] = 0
    assert refusal(png16(pixels)).startswith("is partly transparent")
    found = read_picture(png16(pixels), background="white").pixels
    assert found[2, 3].tolist() == [65535] * (channels - 1)
    found[2, 3] = pixels[2, 3, :-1]
    assert np.array_equal(found, pixels[..., :-1])


def test_sixteen_bit_transparent_colour_is_seen() -> None:
    pixels = deep(6, 7, 3)
    key = chunk(b"tRNS", pixels[0, 0].astype(">u2").tobytes())
    assert refusal(png16(pixels, key)).startswith("is partly transparent")
    absent = chunk(b"tRNS", np.array([1, 2, 3], ">u2").tobytes())
    assert np.array_equal(read_picture(png16(pixels, absent)).pixels, pixels)


def test_sixteen_bit_grey_tiff_is_read_and_deeper_ones_refused() -> None:
    pixels = deep(6, 7, 1)
    assert np.array_equal(read_picture(saved(pixels[..., 0], "TIFF")).pixels, pixels)
    half = np.full((4, 4), 0.5, np.float32)
    assert refusal(saved(half, "TIFF")) == "floating-point TIFF; save it as a 16-bit PNG"
    whole = np.full((4, 4), 70_000, np.int32)
    assert refusal(saved(whole, "TIFF")) == "32-bit TIFF; save it as a 16-bit PNG"
    colour = tiff16(deep(4, 5, 3))
    assert refusal(colour) == "16-bit TIFF; save it as a 16-bit PNG"
    with Image.open(io.BytesIO(colour)) as image:  # Pillow alone gives the high byte
        assert image.mode == "RGB"


@pytest.mark.parametrize("side", [8_000, 10_000, 20_000])
def test_huge_tiff_is_refused_before_it_is_decoded(side: int) -> None:
    """Pillow warns above 89 megapixels and refuses above 179; the limit here is 50."""
    data = saved(RGB, "TIFF")
    for tag, was in ((256, 53), (257, 37)):
        entry = struct.pack("<HHI", tag, 4, 1)
        assert entry + struct.pack("<I", was) in data
        data = data.replace(entry + struct.pack("<I", was), entry + struct.pack("<I", side))
    assert refusal(data).endswith("is above 50 megapixels")


def tiff16(pixels: np.ndarray) -> bytes:
    """A baseline TIFF of 16-bit RGB."""
    height, width, channels = pixels.shape
    data = pixels.astype("<u2").tobytes()
    tags = [(256, 3, 1, width), (257, 3, 1, height), (258, 3, 3, 8 + len(data)), (259, 3, 1, 1)]
    tags += [(262, 3, 1, 2), (273, 4, 1, 8), (277, 3, 1, channels), (278, 3, 1, height)]
    tags += [(279, 4, 1, len(data))]
    directory = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *t) for t in tags)
    at = 8 + len(data) + 6
    return (
        b"II*\0"
        + struct.pack("<I", at)
        + data
        + struct.pack("<HHH", 16, 16, 16)
        + directory
        + bytes(4)
    )


@pytest.mark.parametrize(("mode", "kind"), [("CMYK", "JPEG"), ("CMYK", "TIFF"), ("LAB", "TIFF")])
def test_cmyk_and_lab_need_a_profile(mode: str, kind: str) -> None:
    image = Image.new(mode, (4, 4), (100, 128, 128) if mode == "LAB" else (0, 255, 255, 0))
    assert refusal(saved(image, kind)) == f"{mode} without a colour profile; save it as RGB"
    broken = saved(image, kind, icc_profile=b"nonsense" * 40)
    assert refusal(broken) == f"{mode} with a damaged colour profile"


def test_lab_is_converted_by_its_profile() -> None:
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))
    rgb = Image.new("RGB", (4, 4), (200, 30, 60))
    transform = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), lab, "RGB", "LAB")
    stored = ImageCms.applyTransform(rgb, transform)
    assert stored is not None
    picture = read_picture(saved(stored, "TIFF", icc_profile=lab.tobytes()))
    assert picture.profile is None
    assert np.abs(picture.pixels.astype(int) - (200, 30, 60)).max() <= 3


def test_other_profile_is_named_and_the_pixels_left_alone() -> None:
    other = bytearray(SRGB)
    for spelling in (b"sRGB", "sRGB".encode("utf-16-be")):
        while (at := bytes(other).find(spelling)) >= 0:
            other[at : at + len(spelling)] = spelling.replace(b"s", b"x")
    for kind, options in {"PNG": {}, "WEBP": {"lossless": True}}.items():
        picture = read_picture(saved(RGB, kind, icc_profile=bytes(other), **options))
        assert picture.profile is not None
        assert "xRGB" in picture.profile
        assert np.array_equal(picture.pixels, RGB)
        assert read_picture(saved(RGB, kind, icc_profile=SRGB, **options)).profile is None


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = saved(RGB, "PNG", exif=exif)
    with Image.open(io.BytesIO(data)) as image:
        expected = np.asarray(ImageOps.exif_transpose(image))
        stored = np.asarray(image)
    found = read_picture(data).pixels
    assert np.array_equal(found, expected)
    assert found.flags.c_contiguous
    assert (orientation == 1) == np.array_equal(found, stored)  # the negative control


def test_orientation_is_applied_to_sixteen_bits_too() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = deep(4, 6, 3)
    found = read_picture(png16(pixels, chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0"))))
    assert np.array_equal(found.pixels, np.rot90(pixels, -1))


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_several_frames_are_an_error(kind: str) -> None:
    frames = [Image.fromarray(np.full((8, 8, 3), v, np.uint8)) for v in (0, 99, 200)]
    data = saved(frames[0], kind, save_all=True, append_images=frames[1:])
    assert refusal(data) == "3 frames, expected one picture"
    assert read_picture(saved(frames[0], kind)).pixels.shape == (8, 8, 3)


def test_main_picture_of_a_phone_jpeg_is_read() -> None:
    frames = [Image.fromarray(np.full((16, 16, 3), v, np.uint8)) for v in (10, 200)]
    data = saved(frames[0], "MPO", save_all=True, append_images=frames[1:])
    assert int(read_picture(data).pixels.max()) <= 12


@pytest.mark.parametrize("whole", [JPEG, PNG, WEBP, saved(RGB, "TIFF"), png16(deep(9, 9, 3))])
def test_truncated_picture_is_an_error_at_every_length(whole: bytes) -> None:
    for length in range(1, len(whole) - 16, max(1, len(whole) // 40)):
        assert refusal(whole[:length]).startswith("not a readable JPEG, PNG or WebP (")
    assert not ImageFile.LOAD_TRUNCATED_IMAGES
    assert read_picture(whole).pixels.size


def test_truncated_jpeg_says_so() -> None:
    assert refusal(JPEG[: len(JPEG) // 2]) == unreadable("truncated")
    assert refusal(PNG[: len(PNG) // 2]) == unreadable("truncated")


def test_other_formats_are_refused_although_pillow_opens_them() -> None:
    for kind in ("GIF", "BMP", "PPM", "ICO", "TGA"):
        data = saved(RGB, kind)
        assert refusal(data).startswith("not a readable JPEG, PNG or WebP (")
        Image.open(io.BytesIO(data)).close()  # the negative control


# Writing ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pixels", [RGB, GREY, GREY[..., 0], RGB[:, ::-1]])
def test_png_round_trip(tmp_path: Path, pixels: np.ndarray) -> None:
    write_png(tmp_path / "a.png", pixels)
    found = read_picture(tmp_path / "a.png").pixels
    assert np.array_equal(found, pixels if pixels.ndim == 3 else pixels[..., None])
    assert (tmp_path / "a.png").read_bytes() == png_bytes(pixels)
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


def test_encoders_are_reproducible_and_keep_colour_resolution() -> None:
    for encode in (png_bytes, webp_bytes, lambda p: jpeg_bytes(p, 90), lambda p: webp_bytes(p, 80)):
        assert encode(RGB) == encode(RGB.copy())
    assert np.array_equal(read_picture(webp_bytes(RGB)).pixels, RGB)
    stripes = np.zeros((16, 16, 3), np.uint8)
    stripes[:, ::2, 0] = stripes[:, 1::2, 2] = 255
    full = read_picture(jpeg_bytes(stripes, 95)).pixels.astype(int)
    halved = read_picture(saved(stripes, "JPEG", quality=95, subsampling=2)).pixels.astype(int)
    assert np.abs(full - stripes).max() < 20
    assert np.abs(halved - stripes).max() > 60  # the negative control
