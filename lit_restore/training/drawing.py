"""Data of a generative training as pictures: pixels as they are, latents through their decoder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from lit_restore.errors import UserError
from lit_restore.weights.autoencoder import Autoencoder, load_autoencoder, read_autoencoder_info

Decoder = Callable[[Tensor], Tensor]
"""Data (B, C, H, W) → pictures (B, 3, H', W') in [0, 1], on the device of the data."""


def decoder_of(channels: int, vae: str | None) -> Decoder:
    """How data of so many channels become pictures.

    Args:
        channels: of the data; 3 without `vae` are pixels in [-1, 1].
        vae: the autoencoder's folder, whose weights are loaded at the first call; none shows the
            first three channels of latents as colours.

    Raises:
        UserError: there is no autoencoder, or its latents have other channels.
    """
    if vae is None:
        return pixels if channels == 3 else false_colours
    info = read_autoencoder_info(vae)
    if info.channels != channels:
        raise UserError(
            f"its latents have {info.channels} channels, the network takes {channels}; "
            "set model.net.channels, or give the autoencoder that made the latents",
            where="model.vae",
        )
    return Decoded(vae)


class Decoded:
    """Latents through their autoencoder, which is loaded when it is first needed.

    Args:
        folder: the autoencoder's.
    """

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)
        self._autoencoder: Autoencoder | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """Latents (B, C, h, w) as pictures (B, 3, H, W) in [0, 1]."""
        if self._autoencoder is None:
            self._autoencoder = load_autoencoder(self.folder, device=x.device)
        return self._autoencoder.decode(x)


def pixels(x: Tensor) -> Tensor:
    """[-1, 1] → [0, 1], clipped."""
    return ((x.float() + 1) / 2).clamp(0, 1)


def false_colours(x: Tensor) -> Tensor:
    """Three standard deviations of the first three channels as red, green and blue.

    What has fewer channels than three is repeated: one is grey.
    """
    three = x.float().repeat(1, -(-3 // x.shape[1]), 1, 1)[:, :3]
    return (three / 6 + 0.5).clamp(0, 1)
