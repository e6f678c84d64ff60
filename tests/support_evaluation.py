"""Small pictures, a small network and a disk that kills, for the tests of the evaluation."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import torch
from conftest import encoded, picture

from lit_restore.io.disk import Disk
from lit_restore.networks import UNet
from lit_restore.weights import save_exported


def write_pictures(folder: Path, names: list[str], height: int = 24, width: int = 28) -> Path:
    """Smooth random pictures of one size as PNG files."""
    for number, name in enumerate(names):
        path = folder / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(picture(number, height, width)))
    return folder


def write_network(path: Path, seed: int = 0, **info: str) -> Path:
    """A tiny denoiser that changes its input a little."""
    torch.manual_seed(seed)
    net = UNet(widths=[4], depths=[1])
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    save_exported(path, net, info={"task": "denoiser", "profile": "ema", **info})
    return path


def run(*words: str | Path) -> int:
    """`evaluate.py`'s own command, in this process."""
    from lit_restore.cli.evaluate import main

    return main([str(word) for word in words])


def pixels_of(path: Path) -> np.ndarray:
    """An image file."""
    from lit_restore.io.images import read_picture

    return read_picture(path).pixels


class KillingDisk(Disk):
    """Counts changes of the disk; at number `at` the process dies, a write halfway through."""

    def __init__(self, at: int | None = None) -> None:
        self.at = at
        self.count = 0

    def _step(self) -> bool:
        self.count += 1
        return self.count == self.at

    def _die(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def write(self, fd: int, data: memoryview) -> None:
        if self._step():
            super().write(fd, data[: len(data) // 2])
            self._die()
        super().write(fd, data)

    def create(self, path: Path) -> int:
        if self._step():
            self._die()
        return super().create(path)

    def rename(self, old: Path, new: Path) -> None:
        if self._step():
            self._die()
        super().rename(old, new)

    def mkdir(self, path: Path) -> None:
        if self._step():
            self._die()
        super().mkdir(path)

    def unlink(self, path: Path) -> None:
        if self._step():
            self._die()
        super().unlink(path)
