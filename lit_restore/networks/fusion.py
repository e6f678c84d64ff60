"""Fusion of two estimates of a clean image: DP-IR's network, and two simpler ones to compare.

All are called as `net(restored, denoised, t)`: E[x_0 | y], E[x_0 | x_t] and the time index go in,
E[x_0 | y, x_t] comes out (Zhussip et al. 2024, arXiv 2411.05993, eq. 7, sections 3.3 and App. I,
the comparison's table 5). The paper gives the parts and their total size, 0.73 M; residual dense
blocks of ESRGAN (Wang et al. 2018, arXiv 1809.00219), with weights shared by the two images, give
it exactly, and are the default. Each other choice is an option.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lit_restore.errors import UserError, require_choice
from lit_restore.networks.base import Network, require_counts
from lit_restore.networks.embeddings import timestep_features

Residual = Literal["none", "average"]


class FusionNet(Network):
    """Features of both images, averaged channel by channel with weights of the time, and decoded.

    With the defaults 731,267 parameters. `f = w(t) f(restored) + (1 - w(t)) f(denoised)`.

    Args:
        channels: channels of the images.
        width: features of each image (n_f of the paper).
        num_convs: convolutions of a dense block.
        growth: features that each of them but the last adds.
        block_scale: factor on a dense block's change of its input.
        share_encoder: both images are encoded by the same weights.
        decoder_blocks: dense blocks after the average.
        time_dim: sinusoids of the time, even.
        time_hidden: hidden width of the time's two-layer network.
        unshuffle: side of the pixel blocks that become channels; 2 for a quarter of the work.
        residual: none (the paper's), or average: what comes out is a change of a weighted average
            of the two images, the weights again of the time, which learns in far fewer steps.

    Raises:
        UserError: a number is not positive, `time_dim` is odd, or there is no such residual.
    """

    def __init__(
        self,
        channels: int = 3,
        width: int = 64,
        num_convs: int = 5,
        growth: int = 32,
        block_scale: float = 0.2,
        share_encoder: bool = True,
        decoder_blocks: int = 2,
        time_dim: int = 64,
        time_hidden: int = 64,
        unshuffle: int = 1,
        residual: Residual = "none",
    ) -> None:
        super().__init__()
        require_counts(
            channels=channels, width=width, num_convs=num_convs, growth=growth,
            decoder_blocks=decoder_blocks, time_dim=time_dim, time_hidden=time_hidden,
            unshuffle=unshuffle,
        )  # fmt: skip
        _require_even(time_dim)
        require_choice(residual, ("none", "average"), where="residual")

        def block() -> DenseBlock:
            return DenseBlock(width, num_convs, growth, block_scale)

        self.time_dim, self.unshuffle = time_dim, unshuffle
        self.multiple = unshuffle
        pixels = channels * unshuffle**2
        self.encoders = nn.ModuleList(
            nn.Sequential(nn.Conv2d(pixels, width, 3, padding=1), block())
            for _ in range(1 if share_encoder else 2)
        )
        self.weights = nn.Sequential(
            nn.Linear(time_dim, time_hidden), nn.ReLU(), nn.Linear(time_hidden, width)
        )
        self.decoder = nn.Sequential(*(block() for _ in range(decoder_blocks)))
        self.exit = nn.Conv2d(width, pixels, 3, padding=1)
        self.average = None
        if residual == "average":
            self.average = TimeAverage(channels, time_dim=time_dim, time_hidden=time_hidden)
            nn.init.zeros_(self.exit.weight)
            nn.init.zeros_(self.exit.bias)  # type: ignore[arg-type]

    def blocks(self) -> list[nn.Module]:
        """All dense blocks."""
        return [m for m in self.modules() if isinstance(m, DenseBlock)]

    def forward(self, restored: Tensor, denoised: Tensor, t: Tensor) -> Tensor:
        """E[x_0 | y, x_t].

        Args:
            restored: E[x_0 | y], (B, channels, H, W) in [0, 1].
            denoised: E[x_0 | x_t], likewise.
            t: time indices (B,), 1 … T.

        Returns:
            (B, channels, H, W), not clipped.
        """
        w = torch.sigmoid(self.weights(timestep_features(t, self.time_dim).to(restored)))
        height, width = restored.shape[-2:]
        edge = (0, -width % self.unshuffle, 0, -height % self.unshuffle)
        first, second = (
            F.pixel_unshuffle(F.pad(image, edge, mode="replicate"), self.unshuffle)
            for image in (restored, denoised)
        )
        features = _average(self.encoders[0](first), self.encoders[-1](second), w)
        out = F.pixel_shuffle(self.exit(self.decoder(features)), self.unshuffle)
        out = out[..., :height, :width]
        return out if self.average is None else out + self.average(restored, denoised, t)


class DenseBlock(nn.Module):
    """x + scale · F(x); every convolution of F sees the outputs of all before it."""

    def __init__(self, width: int, num_convs: int, growth: int, scale: float) -> None:
        super().__init__()
        self.scale = scale
        outputs = [growth] * (num_convs - 1) + [width]
        self.convs = nn.ModuleList(
            nn.Conv2d(width + k * growth, out, 3, padding=1) for k, out in enumerate(outputs)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, width, H, W) → the same shape."""
        seen = x
        for conv in self.convs[:-1]:
            seen = torch.cat([seen, F.relu(conv(seen))], dim=1)
        change: Tensor = self.convs[-1](seen)
        return x + self.scale * change


class TimeAverage(Network):
    """The paper's TDWA: an average of the two images, weights of each channel from the time.

    Args:
        channels: channels of the images.
        time_dim: sinusoids of the time, even.
        time_hidden: width of the hidden layers.

    Raises:
        UserError: a number is not positive, or `time_dim` is odd.
    """

    def __init__(self, channels: int = 3, time_dim: int = 64, time_hidden: int = 64) -> None:
        super().__init__()
        require_counts(channels=channels, time_dim=time_dim, time_hidden=time_hidden)
        _require_even(time_dim)
        self.time_dim = time_dim
        self.weights = nn.Sequential(
            nn.Linear(time_dim, time_hidden), nn.ReLU(),
            nn.Linear(time_hidden, time_hidden), nn.ReLU(),
            nn.Linear(time_hidden, channels),
        )  # fmt: skip

    def blocks(self) -> list[nn.Module]:
        """None: there is nothing large in it."""
        return []

    def forward(self, restored: Tensor, denoised: Tensor, t: Tensor) -> Tensor:
        """See `FusionNet.forward`."""
        w = torch.sigmoid(self.weights(timestep_features(t, self.time_dim).to(restored)))
        return _average(restored, denoised, w)


class WaveletAverage(Network):
    """The paper's L-DWT: an average of the two images' wavelet bands, one weight for each.

    With the defaults 30 parameters; the time has no part in it.

    Args:
        channels: channels of the images.
        levels: of the Haar transform.

    Raises:
        UserError: a number is not positive.
    """

    def __init__(self, channels: int = 3, levels: int = 3) -> None:
        super().__init__()
        require_counts(channels=channels, levels=levels)
        self.levels = levels
        self.multiple = 2**levels
        self.details = nn.Parameter(torch.zeros(levels, channels, 3))
        self.mean = nn.Parameter(torch.zeros(channels))

    def blocks(self) -> list[nn.Module]:
        """None: there is nothing large in it."""
        return []

    def forward(self, restored: Tensor, denoised: Tensor, t: Tensor) -> Tensor:
        """See `FusionNet.forward`."""
        height, width = restored.shape[-2:]
        step = 2**self.levels
        edge = (0, -width % step, 0, -height % step)
        low = F.pad(restored - denoised, edge, mode="replicate")
        bands = []
        for weights in self.details:
            parts = haar_split(low)
            low = parts[:, :, 0]
            bands.append(parts[:, :, 1:] * torch.sigmoid(weights)[..., None, None])
        low = low * torch.sigmoid(self.mean)[:, None, None]
        for detail in reversed(bands):
            low = haar_merge(torch.cat([low[:, :, None], detail], dim=2))
        return denoised + low[..., :height, :width]


def haar_split(x: Tensor) -> Tensor:
    """One orthonormal Haar level: (B, C, 2h, 2w) → (B, C, 4, h, w), the mean's band first."""
    batch, channels, height, width = x.shape
    a, b, c, d = F.pixel_unshuffle(x, 2).view(batch, channels, 4, height // 2, width // 2).unbind(2)
    return torch.stack([a + b + c + d, a - b + c - d, a + b - c - d, a - b - c + d], dim=2) / 2


def haar_merge(bands: Tensor) -> Tensor:
    """The inverse of `haar_split`, by the same matrix, which is its own inverse."""
    a, b, c, d = bands.unbind(2)
    parts = [a + b + c + d, a - b + c - d, a + b - c - d, a - b - c + d]
    return F.pixel_shuffle(torch.stack(parts, dim=2).flatten(1, 2) / 2, 2)


def _average(first: Tensor, second: Tensor, weight: Tensor) -> Tensor:
    """Weighted: weight (B, C) · first + (1 - weight) · second, both (B, C, H, W)."""
    return torch.lerp(second, first, weight[..., None, None].to(first))


def _require_even(time_dim: int) -> None:
    if time_dim % 2:
        raise UserError(f"{time_dim} is odd; sines and cosines come in pairs", where="time_dim")
