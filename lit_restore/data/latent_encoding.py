"""Pictures as latents: what one process does with its share of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lit_restore.data.batch import Sample
from lit_restore.data.derived_part import Made, Part, ThreadedReader, write_parts
from lit_restore.data.encode import Packed
from lit_restore.data.latents import LatentInfo
from lit_restore.data.memory import memory_is_short
from lit_restore.data.pixels import adm_square
from lit_restore.data.reader import Source
from lit_restore.errors import UserError
from lit_restore.io import arrays
from lit_restore.weights.autoencoder import Autoencoder, load_autoencoder

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class _Square:
    """A picture ready to be encoded."""

    key: str
    where: str
    label: int | None
    pixels: Pixels
    """(size, size, 3)."""


def encode_part(
    part: Part,
    *,
    source: Source,
    names: Sequence[str],
    folder: Path,
    vae: Path,
    info: LatentInfo,
) -> Iterator[int | Made]:
    """Make shards of latents, one after the other.

    Args:
        part: which, and where.
        source: the pictures.
        names: file names of all shards to be made, one a shard of `source`.
        folder: where they go.
        vae: folder of the autoencoder.
        info: what is made.

    Yields:
        The number of pictures encoded since the last time, and each finished shard.
    """
    reader = ThreadedReader(source)
    model = load_autoencoder(vae, device=part.device, dtype=getattr(torch, info.compute))
    yield from write_parts(
        part, source, names, folder,
        read=lambda index: _square(reader(index), source.where(index), info.size),
        pack=lambda batch: encoded(batch, model, info),
        batch=info.batch,
    )  # fmt: skip


def encoded(batch: Sequence[_Square], model: Autoencoder, info: LatentInfo) -> list[Packed]:
    """Pictures as the members of a shard: `.npy` of `info.shape`, `.cls`.

    Raises:
        UserError: a number is not finite, or too large as it is stored; or memory is short.
    """
    pixels = torch.from_numpy(np.stack([square.pixels for square in batch]))
    images = pixels.permute(0, 3, 1, 2).to(model.device).contiguous().float() / 255
    try:
        views = [torch.stack(model.moments(images), 1)]
        if info.mirrored:
            views.append(torch.stack(model.moments(images.flip(-1)), 1))
    except (RuntimeError, MemoryError) as error:
        if not memory_is_short(error):
            raise
        raise UserError(f"not enough memory on {model.device}; lower it", where="--batch") from None
    latents = torch.stack(views, 1) if info.mirrored else views[0]
    stored = latents.to(getattr(torch, info.dtype)).cpu()
    assert stored.shape[1:] == info.shape, (stored.shape, info.shape)
    return [_packed(square, row) for square, row in zip(batch, stored, strict=True)]


def _packed(square: _Square, row: Tensor) -> Packed:
    if not row.isfinite().all():
        mend = "use --compute float32 and --dtype float32"
        raise UserError(f"its latent holds what is not finite; {mend}", where=square.where)
    label = {} if square.label is None else {"cls": str(square.label).encode()}
    return Packed(square.key, {**label, "npy": arrays.npy_bytes(row.numpy())})


def _square(sample: Sample, where: str, size: int) -> _Square:
    if not sample.image.size or sample.degraded is not None or sample.array is not None:
        reason = "is no picture alone (with or without a label); only such are encoded"
        raise UserError(reason, where=where)
    return _Square(sample.key, where, sample.label, adm_square(sample.image, size))
