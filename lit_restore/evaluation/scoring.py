"""An output becomes a PNG, and the PNG becomes numbers."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lit_restore.errors import UserError
from lit_restore.evaluation.metrics import Values, measure
from lit_restore.evaluation.perceptual.meters import Meters
from lit_restore.evaluation.protocols import Column, Protocol
from lit_restore.evaluation.rows import Row
from lit_restore.evaluation.sources import Item
from lit_restore.evaluation.table import INFINITE
from lit_restore.io import fs, images
from lit_restore.io.quantise import Pixels, to_uint8
from lit_restore.seeding import torch_generator


def add_noise(clean: Tensor, sigma: float, *, seed: int, key: str) -> Tensor:
    """Clean + σ·n, not clipped; n is standard normal, of (seed, key) alone.

    Args:
        clean: one image (1, C, H, W).
        sigma: in image units.
        seed: of the evaluation.
        key: of the picture.
    """
    generator = torch_generator(seed, key, "noise")
    return clean + sigma * torch.randn(clean.shape, generator=generator, dtype=clean.dtype)


def truth_of(picture: images.Picture) -> Values:
    """What is measured against: (H, W, 1 or 3) in [0, 255], 16 bits kept as fractions."""
    if picture.pixels.dtype == np.uint8:
        return picture.pixels
    return picture.pixels / 257.0


def for_the_eye(item: Item, background: str | None) -> Pixels | None:
    """A picture in 8 bits; None if it cannot be read."""
    try:
        picture = item.picture(background)
    except UserError:
        return None
    rounded: Pixels = np.floor(truth_of(picture) + 0.5).astype(np.uint8)
    return rounded


def png_name(row: Row) -> str:
    """Where the output of a row lies in the run folder."""
    return f"png/{row.method}/sigma{row.sigma:g}/seed{row.seed}/{row.key}.png"


def write_output(run: Path, name: str, estimate: Tensor) -> None:
    """Quantise one estimate (1, C, H, W) and write it.

    Raises:
        UserError: a value is not finite.
    """
    bad = int((~torch.isfinite(estimate)).sum())
    if bad:
        raise UserError(f"the output holds {bad} non-finite values")
    path = run / name
    fs.make_dir(path.parent)
    images.write_png(path, to_uint8(estimate)[0])


def read_output(path: Path) -> tuple[Pixels, str]:
    """Pixels and sha256 of an output's PNG."""
    data = fs.read_bytes(path)
    pixels = images.read_picture(data, name=str(path)).pixels
    assert pixels.dtype == np.uint8
    return np.asarray(pixels, np.uint8), hashlib.sha256(data).hexdigest()


def scores(
    protocol: Protocol, estimate: Values, truth: Values, meters: Meters | None = None
) -> tuple[dict[str, float], dict[str, str]]:
    """Every column of a protocol for one picture, both (H, W, 1 or 3) in [0, 255].

    Args:
        protocol: its columns.
        estimate: what is measured.
        truth: what it is measured against.
        meters: for the perceptual columns, where there are any.

    Returns:
        Column name → value, and column name → why there is none.
    """
    meters = Meters() if meters is None else meters
    metrics, blanks = {}, {}
    for column in protocol.columns:
        if column.metric in meters.missing:
            blanks[column.name] = meters.missing[column.metric]
            continue
        try:
            value = _measured(column, estimate, truth, meters)
        except ValueError as error:
            blanks[column.name] = str(error)
            continue
        if math.isfinite(value):
            metrics[column.name] = value
        else:
            blanks[column.name] = INFINITE if column.metric == "psnr" else f"is {value}"
    return metrics, blanks


def _measured(column: Column, estimate: Values, truth: Values, meters: Meters) -> float:
    if column.metric == "psnr" or column.metric == "ssim":
        return measure(column.metric, estimate, truth, colour=column.colour, border=column.border)
    return meters.functions[column.metric](estimate, truth)
