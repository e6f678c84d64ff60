"""Stored posteriors of an autoencoder: what a shard of latents holds, and a draw from it.

`lit-restore shards encode` stores for each picture the mean and the standard deviation of the
autoencoder's posterior, of the picture as it is and of its mirror image, so that training draws a
new latent each time it sees the picture. Both are stored times the autoencoder's scaling factor:
training needs the numbers alone.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor

from lit_restore.data.manifest import MANIFEST, read_manifest
from lit_restore.errors import UserError
from lit_restore.io import fs
from lit_restore.io.wording import shown
from lit_restore.seeding import torch_generator

StoredType = Literal["float16", "float32"]
ComputeType = Literal["float32", "bfloat16", "float16"]
STORED: tuple[StoredType, ...] = get_args(StoredType)
"""How latents can be stored; `.npy` files have no bfloat16."""
COMPUTE: tuple[ComputeType, ...] = get_args(ComputeType)
"""What the autoencoder can compute in."""
ENTRY = "latents"
"""Under this name the description stands in `manifest.json`."""

_LIMIT = 64 << 20
_KINDS = {"int": int, "float": float, "bool": bool}


@dataclass(frozen=True, kw_only=True)
class LatentInfo:
    """How the latents of a folder were made: equal descriptions and pictures, equal numbers."""

    vae: str
    """`AutoencoderInfo.sha256`."""
    size: int
    """Side of the square pictures that were encoded, pixels."""
    factor: int
    """Pixels of a picture's side for one of the latent's."""
    channels: int
    """Of a latent."""
    scaling_factor: float
    """What is stored is (mean - shift_factor) · scaling_factor and std · scaling_factor."""
    shift_factor: float
    mirrored: bool
    """Whether mirror images were encoded too."""
    dtype: StoredType
    """As stored."""
    compute: ComputeType
    """What the autoencoder computed in."""
    batch: int
    """Pictures encoded at once, which can change the last bits."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of a sample's array: ([as it is, mirrored],) [mean, std], channels, h, w."""
        side = self.size // self.factor
        return (*((2,) if self.mirrored else ()), 2, self.channels, side, side)

    def described(self) -> dict[str, object]:
        """As it stands in `manifest.json`, with the array's shape and axes for the reader."""
        axes = ["as it is, mirrored"] * self.mirrored + ["mean, std", "channel", "row", "column"]
        return {**asdict(self), "shape": list(self.shape), "axes": axes}


def draw_latent(stored: Tensor, seed: int, positions: Sequence[int | str]) -> Tensor:
    """A latent of each sample: mean + std · n of the picture or of its mirror image.

    Which of the two comes from the sample's stream "flip" (one half each), the normal numbers n
    from its stream "posterior": a picture seen again, at another position, is drawn anew, and
    batch, world size and resuming change nothing.

    Args:
        stored: (B, 2, 2, C, h, w), [as it is, mirrored] by [mean, std], or (B, 2, C, h, w) where
            no mirror images are stored: `batch["latent"]`.
        seed: the run's seed.
        positions: of the B samples in the run; their keys where there is no run.

    Returns:
        (B, C, h, w) float32 on the device of `stored`, scaled as a model is trained on it.

    Raises:
        UserError: these are no stored posteriors.
    """
    halves = stored.shape[1 : stored.ndim - 3]
    if stored.ndim not in (5, 6) or any(half != 2 for half in halves):
        raise UserError(
            f"arrays {tuple(stored.shape[1:])} are not the [mean, std] of latents; "
            "make them with: lit-restore shards encode",
            where="data.train",
        )
    assert len(positions) == len(stored), (len(positions), len(stored))
    pairs = zip(stored, positions, strict=True)
    return torch.stack([_draw(moments, seed, position) for moments, position in pairs])


def _draw(moments: Tensor, seed: int, position: int | str) -> Tensor:
    """One sample's latent from its ([as it is, mirrored],) [mean, std], C, h, w."""
    if moments.ndim == 5:
        side = torch.randint(2, (), generator=torch_generator(seed, position, "flip"))
        moments = moments[int(side)]
    mean, std = moments.float().unbind()
    generator = torch_generator(seed, position, "posterior", mean.device)
    noise = torch.randn(mean.shape, generator=generator, device=mean.device)
    return mean + std * noise


def read_latent_info(folder: Path) -> LatentInfo:
    """What the manifest of a folder says of its latents.

    Raises:
        UserError: no folder of shards, not of latents, or the description is damaged.
    """
    read_manifest(folder, check_files=False)
    path = folder / MANIFEST
    found = json.loads(fs.read_text(path, limit=_LIMIT)).get(ENTRY)
    if found is None:
        raise UserError(
            "holds no latents of an autoencoder; make them with: lit-restore shards encode",
            where=folder,
        )
    return parse_latent_info(found, where=path)


def parse_latent_info(found: object, *, where: Path) -> LatentInfo:
    """A description from a file; `UserError` naming `where` if it is damaged."""
    values = found if isinstance(found, dict) else {}
    for field in fields(LatentInfo):
        if type(values.get(field.name)) is not _KINDS.get(str(field.type), str):
            told = f'its "{ENTRY}" lack a sound "{field.name}"; encode the shards anew'
            raise UserError(told, where=where)
    info = LatentInfo(**{field.name: values[field.name] for field in fields(LatentInfo)})
    if info.dtype not in STORED or info.compute not in COMPUTE:
        raise UserError(f"type {shown(info.dtype)} or {shown(info.compute)} not known", where=where)
    return info
