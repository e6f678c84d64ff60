"""A tiny autoencoder of diffusers' own class, with random weights, saved as diffusers saves one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

FACTOR = 4


def save_autoencoder(folder: Path, *, seed: int = 0, **options: object) -> Path:
    """An `AutoencoderKL` of 4 latent channels that shrinks a side by 4; skips without diffusers."""
    diffusers = pytest.importorskip("diffusers", reason="needs the extra diffusers")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        widths = (4, 8, 8)
        model = diffusers.AutoencoderKL(
            block_out_channels=widths,
            down_block_types=("DownEncoderBlock2D",) * len(widths),
            up_block_types=("UpDecoderBlock2D",) * len(widths),
            layers_per_block=1,
            norm_num_groups=2,
            **options,
        )
    model.save_pretrained(folder)
    return folder


def change_config(folder: Path, **values: object) -> None:
    """Set options in a folder's config.json; None removes one."""
    path = folder / "config.json"
    config = {**json.loads(path.read_text()), **values}
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
