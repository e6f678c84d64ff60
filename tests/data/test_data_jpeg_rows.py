"""The first rows of a JPEG: bit-equal to those of the whole picture, for every kind of file."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from conftest import picture, write_tar
from PIL import Image

from lit_restore.data.decode import DECODER, decode_image
from lit_restore.data.jpeg_rows import decode_rows
from lit_restore.data.order import Order
from lit_restore.data.reader import ShardSource, open_shards
from lit_restore.data.samples import Augmentation, TrainingSamples


def jpeg(pixels: np.ndarray, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", **{"quality": 95, **options})
    return buffer.getvalue()


@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("options", [{}, {"optimize": True}, {"restart_marker_blocks": 3}])
@pytest.mark.parametrize("size", [(150, 97), (256, 64), (129, 200)])
def test_the_rows_asked_for_are_those_of_the_whole(
    subsampling: int, options: dict[str, object], size: tuple[int, int]
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    data = jpeg(noise, subsampling=subsampling, **options)
    whole = decode_image(data, name="x")
    done = 0
    for rows in range(1, size[0] + 1, 7):
        part = decode_rows(data, rows)
        if part is not None:
            assert part.shape == whole.shape
            np.testing.assert_array_equal(part[:rows], whole[:rows])
            done += 1
    assert done > 8


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("progressive", jpeg(picture(1, 200, 64), progressive=True)),
        ("grey", jpeg(picture(1, 200, 64)[..., 0])),
        ("cut", jpeg(picture(1, 200, 64))[:-400]),
        ("text after its end", jpeg(picture(1, 200, 64)) + b"more"),
        ("a header alone", jpeg(picture(1, 200, 64))[:100]),
        ("nothing", b""),
    ],
)
def test_other_files_are_left_to_the_whole_decoder(name: str, data: bytes) -> None:
    assert decode_rows(data, 20) is None


def source_of(folder: Path, *, vouched: bool) -> ShardSource:
    pictures = [np.ascontiguousarray(np.rot90(picture(k, 160, 200))) for k in range(6)]
    shard = write_tar(folder / "t.tar", [(f"{k}.jpg", jpeg(p)) for k, p in enumerate(pictures)])
    return open_shards([shard], digests={shard.name: "0" * 64} if vouched else None)


@pytest.mark.parametrize("decoder", ["", "pillow"])
def test_samples_are_the_same_whether_all_rows_are_decoded_or_few(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, decoder: str
) -> None:
    monkeypatch.setenv(DECODER, decoder)
    decoded = []

    def counting(data: bytes, rows: int) -> np.ndarray | None:
        part = decode_rows(data, rows)
        decoded.append(part is not None)
        return part

    monkeypatch.setattr("lit_restore.data.jpeg_rows.decode_rows", counting)
    samples = []
    for vouched in (False, True):
        (tmp_path / str(vouched)).mkdir()
        source = source_of(tmp_path / str(vouched), vouched=vouched)
        order = Order(source.counts, seed=0, window=2)
        augmentation = Augmentation(crop=48, flip=True, rotate=True)
        dataset = TrainingSamples(source, order, augmentation=augmentation, seed=5)
        samples.append([dataset[k] for k in range(40)])
        # Without a manifest damage is still looked for.
        assert bool(decoded) == (vouched and not decoder)
    assert sum(decoded) > 20 or decoder
    for one, other in zip(*samples, strict=True):
        np.testing.assert_array_equal(one.image, other.image)
