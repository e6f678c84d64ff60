"""Fixtures that several rooms use."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("WANDB_MODE", "offline")

import numpy as np
import pytest
import torch
from PIL import Image

from lit_restore.io import trust


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Bit-equality holds for one number of threads, and forked ranks must not find two."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def default_dtype() -> Iterator[None]:
    """A test that changes the default dtype does not change the next one's."""
    before = torch.get_default_dtype()
    yield
    torch.set_default_dtype(before)


@pytest.fixture(autouse=True)
def no_trust() -> Iterator[None]:
    """A test that gives `--trust_config` gives it to itself alone."""
    yield
    trust._given = False


def picture(seed: int, height: int = 40, width: int = 48) -> np.ndarray:
    """A smooth random picture, (H, W, 3) uint8."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def encoded(pixels: np.ndarray, kind: str = "png") -> bytes:
    """An image file's bytes."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, {"jpg": "JPEG"}.get(kind, kind.upper()))
    return buffer.getvalue()


def write_tar(path: Path, members: list[tuple[str, bytes]]) -> Path:
    """A plain ustar archive."""
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


@pytest.fixture
def make_shards(tmp_path: Path) -> Callable[..., Path]:
    """`make_shards(counts, kind="png", name="shards")` → a folder of shards of small pictures."""

    def make(counts: list[int], *, kind: str = "png", name: str = "shards", size: int = 40) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        number = 0
        for shard, count in enumerate(counts):
            members = []
            for _ in range(count):
                pixels = picture(number, size, size + 8)
                members.append((f"{number:05d}.{kind}", encoded(pixels, kind)))
                number += 1
            write_tar(folder / f"train-{shard:04d}.tar", members)
        return folder

    return make


def write_shards(folder: Path) -> Path:
    """Three shards of seven small pictures each."""
    for shard in range(3):
        members = [(f"{shard}-{k}.png", encoded(picture(10 * shard + k))) for k in range(7)]
        write_tar(folder / f"train-{shard}.tar", members)
    return folder


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three small shards; not to be written to."""
    return write_shards(tmp_path_factory.mktemp("shards"))
