"""Evaluations of restorations in small: the command, its rows, the degraded picture."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from support_evaluation import run
from support_restoration import save_all

from lit_restore.evaluation.perceptual.weights import VARIABLE
from lit_restore.io.quantise import from_pixels
from lit_restore.ops.resize import imresize

HALF = "{class_path: Downscale, init_args: {scale: 2}}"
"""What the networks of `save_all` were trained for."""
RESTORE = ("--protocol", "restore", "--degradation", HALF)


def networks(folder: Path) -> Path:
    """The fusion, over a denoiser and a restorer beside it."""
    return save_all(folder / "nets")


def evaluate(out: Path, *words: str | Path) -> int:
    """`evaluate.py run … --out OUT`."""
    return run("run", *words, "--out", out)


def rows_of(out: Path, **wanted: str) -> list[dict[str, str]]:
    """The rows of rows.csv that have these values."""
    rows = csv.DictReader((out / "rows.csv").read_text().splitlines())
    return [row for row in rows if all(row[k] == v for k, v in wanted.items())]


def refusal(capsys: pytest.CaptureFixture[str], out: Path, *words: str | Path) -> str:
    """The one line with which an evaluation is refused, before anything is written."""
    there = out.exists()
    capsys.readouterr()
    assert evaluate(out, *words) == 2
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1, printed
    assert out.exists() == there
    return printed.removeprefix("error: ").rstrip("\n")


def hide_weights(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No perceptual metric finds its weights."""
    monkeypatch.setenv(VARIABLE, str(folder / "no-weights"))
    monkeypatch.setenv("TORCH_HOME", str(folder / "no-hub"))


def halved(pixels: np.ndarray, *, rounded: bool = True) -> torch.Tensor:
    """(1, C, H / 2, W / 2), after cutting to even sides: MATLAB's bicubic, in 8 bits."""
    height, width = (side // 2 * 2 for side in pixels.shape[:2])
    small = imresize(from_pixels(np.ascontiguousarray(pixels[:height, :width])), 0.5)
    return (255 * small.clamp(0, 1) + 0.5).floor() / 255 if rounded else small


def decibels(estimate: np.ndarray, truth: np.ndarray) -> float:
    """PSNR of two 8-bit pictures, written out."""
    error = estimate.astype(np.float64) - truth.astype(np.float64)
    return float(10 * np.log10(255**2 / np.mean(error**2)))
