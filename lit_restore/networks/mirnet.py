"""MIRNet (first version) and MIRNet-S: streams at three resolutions that keep exchanging.

Written from the description in Zamir et al., "Learning Enriched Features for Real Image
Restoration and Enhancement", ECCV 2020, arXiv 2003.06792, section 3. Names are the paper's: RRG
(recursive residual group), MSRB (multi-scale residual block), DAU (dual attention unit), SKFF
(selective kernel feature fusion).

The published network has weights that its description does not show to be shared: the columns of
DAUs in a stream are one DAU applied repeatedly, and all DAUs of the network have one activation
slope. Only so do the published sizes come out (31.79 M, and DP-IR's MIRNet-S 15.95 M). Here what
is shared exists once and is named once in the state dict: the slope belongs to the network, which
hands it down.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lit_restore.errors import UserError
from lit_restore.networks.base import Network, noise_map, require_counts


class MIRNet(Network):
    """Denoiser x + f(x, σ). The defaults are DP-IR's MIRNet-S; msrbs=2, in_channels=3 is MIRNet.

    The attention pools over the whole image, so a tile's output depends on the tile.

    Args:
        in_channels: `channels` for a blind network, one more for a noise map as last channel.
        channels: channels of the image.
        width: channels of the finest stream; each coarser one has twice as many.
        rrgs: number of recursive residual groups.
        msrbs: multi-scale residual blocks in each group.
        streams: resolutions, each half the one before.
        columns: how often each stream's dual attention is applied in a block.
        share_columns: those applications share weights, as in the published network.
        reduction: ratio of the channels to those inside the attentions.

    Raises:
        UserError: a number is not positive, `in_channels` fits neither form, or `reduction` leaves
            no channel.
    """

    def __init__(
        self,
        in_channels: int = 4,
        channels: int = 3,
        width: int = 64,
        rrgs: int = 3,
        msrbs: int = 1,
        streams: int = 3,
        columns: int = 2,
        share_columns: bool = True,
        reduction: int = 8,
    ) -> None:
        super().__init__()
        require_counts(
            in_channels=in_channels, channels=channels, width=width, rrgs=rrgs, msrbs=msrbs,
            streams=streams, columns=columns, reduction=reduction,
        )  # fmt: skip
        if in_channels not in (channels, channels + 1):
            raise UserError(
                f"{in_channels} must be channels ({channels}), or one more for a noise map",
                where="in_channels",
            )
        if reduction > width:
            raise UserError(f"{reduction} is above width ({width})", where="reduction")
        self.multiple = 2 ** (streams - 1)
        self.channels = channels
        self.has_noise_map = in_channels > channels
        self.slope = nn.Parameter(torch.full((1,), 0.25))
        self.entry = _conv3(in_channels, width)
        self.groups = nn.ModuleList(
            RRG([MSRB(width, streams, columns, share_columns, reduction) for _ in range(msrbs)])
            for _ in range(rrgs)
        )
        self.exit = _conv3(width, channels)

    def blocks(self) -> list[nn.Module]:
        """All multi-scale residual blocks."""
        return [module for module in self.modules() if isinstance(module, MSRB)]

    def forward(self, x: Tensor, sigma: Tensor | None = None) -> Tensor:
        """Estimate the clean images.

        Args:
            x: noisy images (B, channels, H, W), range [0, 1] before the noise; H and W multiples
                of `multiple` (4).
            sigma: noise levels (B,), in the same units; a blind network takes and ignores them.

        Returns:
            (B, channels, H, W), not clipped.
        """
        inputs = x
        if self.has_noise_map:
            assert sigma is not None, "a network with a noise map needs sigma"
            inputs = torch.cat([x, noise_map(sigma, x)], dim=1)
        features = self.entry(inputs)
        for group in self.groups:
            features = group(features, self.slope)
        # The residual is of the image: the noise map is no part of it.
        out: Tensor = inputs[:, : self.channels] + self.exit(features)
        return out


class RRG(nn.Module):
    """Recursive residual group: blocks, a convolution, and a skip over all of them."""

    def __init__(self, blocks: Sequence[MSRB]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.conv = _conv3(blocks[0].width, blocks[0].width)

    def forward(self, x: Tensor, slope: Tensor) -> Tensor:
        """(B, width, H, W) → the same shape."""
        features = x
        for block in self.blocks:
            features = block(features, slope)
        out: Tensor = self.conv(features) + x
        return out


class MSRB(nn.Module):
    """Multi-scale residual block: streams of dual attention that exchange between columns."""

    def __init__(
        self, width: int, streams: int, columns: int, share_columns: bool, reduction: int
    ) -> None:
        super().__init__()
        self.width, self.columns = width, columns
        widths = [width * 2**i for i in range(streams)]
        pairs = [(i, j) for i in range(streams) for j in range(streams)]
        self.attentions = nn.ModuleList(
            nn.ModuleList(DAU(w, reduction) for w in widths)
            for _ in range(1 if share_columns else columns)
        )
        self.moves = nn.ModuleDict({f"{i}_{j}": _move(widths, i, j) for i, j in pairs if i != j})
        self.fusions = nn.ModuleList(SKFF(w, streams, reduction) for w in widths)
        self.last_moves = nn.ModuleList(_move(widths, i, 0) for i in range(1, streams))
        self.conv = _conv3(width, width)

    def forward(self, x: Tensor, slope: Tensor) -> Tensor:
        """(B, width, H, W) → the same shape."""
        states = self._first_column(x, slope)
        for column in range(1, self.columns):
            fused = [fusion(self._gather(states, j)) for j, fusion in enumerate(self.fusions)]
            states = [dau(y, slope) for dau, y in zip(self._column(column), fused, strict=True)]
        finest = [states[0]]
        finest += [move(y) for move, y in zip(self.last_moves, states[1:], strict=True)]
        out: Tensor = self.conv(self.fusions[0](finest)) + x
        return out

    def _first_column(self, x: Tensor, slope: Tensor) -> list[Tensor]:
        """Each stream starts from the one above, one step down."""
        states: list[Tensor] = []
        for i, attention in enumerate(self._column(0)):
            x = attention(x if i == 0 else self.moves[f"{i - 1}_{i}"](x), slope)
            states.append(x)
        return states

    def _column(self, index: int) -> nn.ModuleList:
        column = self.attentions[min(index, len(self.attentions) - 1)]
        assert isinstance(column, nn.ModuleList)
        return column

    def _gather(self, states: Sequence[Tensor], target: int) -> list[Tensor]:
        """All streams brought to the resolution and width of one."""
        return [
            state if source == target else self.moves[f"{source}_{target}"](state)
            for source, state in enumerate(states)
        ]


class DAU(nn.Module):
    """Dual attention unit: two convolutions, then attention over space and over channels."""

    def __init__(self, width: int, reduction: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = _conv3(width, width), _conv3(width, width)
        self.space = nn.Conv2d(2, 1, 5, padding=2, bias=False)
        self.squeeze = _conv1(width, width // reduction)
        self.excite = _conv1(width // reduction, width)
        self.merge = _conv1(2 * width, width)

    def forward(self, x: Tensor, slope: Tensor) -> Tensor:
        """(B, width, H, W) → the same shape."""
        features = self.conv2(F.prelu(self.conv1(x), slope))
        extremes = torch.cat(
            [features.amax(dim=1, keepdim=True), features.mean(dim=1, keepdim=True)], dim=1
        )
        over_space = features * torch.sigmoid(self.space(extremes))
        pooled = features.mean(dim=(2, 3), keepdim=True)
        over_channels = features * torch.sigmoid(self.excite(F.relu(self.squeeze(pooled))))
        out: Tensor = self.merge(torch.cat([over_space, over_channels], dim=1)) + x
        return out


class SKFF(nn.Module):
    """Selective kernel feature fusion: per channel, a convex combination of the streams."""

    def __init__(self, width: int, streams: int, reduction: int) -> None:
        super().__init__()
        inner = max(width // reduction, 4)
        self.squeeze = _conv1(width, inner)
        self.activation = nn.PReLU()
        self.choose = nn.ModuleList(_conv1(inner, width) for _ in range(streams))

    def forward(self, streams: Sequence[Tensor]) -> Tensor:
        """Tensors (B, width, H, W), one for each stream → (B, width, H, W)."""
        stacked = torch.stack(list(streams))
        pooled = stacked.sum(dim=0).mean(dim=(2, 3), keepdim=True)
        shared = self.activation(self.squeeze(pooled))
        weights = torch.stack([choose(shared) for choose in self.choose]).softmax(dim=0)
        return (stacked * weights).sum(dim=0)


class Downscale(nn.Module):
    """Residual step to half the resolution and twice the channels, antialiased."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.main = nn.Sequential(
            _conv1(width, width),
            nn.PReLU(),
            _conv3(width, width),
            nn.PReLU(),
            Blur(),
            _conv1(width, 2 * width),
        )
        self.bypass = nn.Sequential(Blur(), _conv1(width, 2 * width))

    def forward(self, x: Tensor) -> Tensor:
        """(B, width, H, W) → (B, 2 width, H/2, W/2)."""
        out: Tensor = self.main(x) + self.bypass(x)
        return out


class Upscale(nn.Module):
    """Residual step to twice the resolution and half the channels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.main = nn.Sequential(
            _conv1(width, width),
            nn.PReLU(),
            nn.ConvTranspose2d(width, width, 3, 2, padding=1, output_padding=1, bias=False),
            nn.PReLU(),
            _conv1(width, width // 2),
        )
        self.bypass = nn.Sequential(
            nn.Upsample(scale_factor=2, mode="bilinear"), _conv1(width, width // 2)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, width, H, W) → (B, width/2, 2H, 2W)."""
        out: Tensor = self.main(x) + self.bypass(x)
        return out


class Blur(nn.Module):
    """Every second pixel after the binomial filter [1, 2, 1]/4, reflected at the border."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → (B, C, H/2, W/2)."""
        taps = torch.tensor([0.25, 0.5, 0.25], dtype=x.dtype, device=x.device)
        kernel = torch.outer(taps, taps).expand(x.shape[1], 1, 3, 3)
        padded = F.pad(x, (1, 1, 1, 1), mode="reflect")
        return F.conv2d(padded, kernel, stride=2, groups=x.shape[1])


def _move(widths: Sequence[int], source: int, target: int) -> nn.Sequential:
    """From one stream's resolution to another's, a factor of 2 at a time."""
    if source < target:
        return nn.Sequential(*(Downscale(widths[i]) for i in range(source, target)))
    return nn.Sequential(*(Upscale(widths[i]) for i in range(source, target, -1)))


def _conv1(a: int, b: int) -> nn.Conv2d:
    return nn.Conv2d(a, b, 1, bias=False)


def _conv3(a: int, b: int) -> nn.Conv2d:
    return nn.Conv2d(a, b, 3, padding=1, bias=False)
