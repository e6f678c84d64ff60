"""BSRT (Luo et al., CVPRW 2022, arXiv 2204.08332): joint denoising, demosaicking, upscaling.

Each frame's features come from Swin blocks at the size of the packed planes, and are shuffled to
that of the mosaic; all are aligned with frame 0 along optical flow, fused, worked on by residual
groups of Swin blocks, and enlarged by four. Written from the paper and from how the published
code (github.com/Algolzw/BSRT, MIT, its `synthetic` variant with `--swinfeature` and without
non-local fusion) names and joins its layers, so that state-dict names and shapes are the
published ones; the published sizes, 4.92 M and 20.71 M, come out exactly. On random weights the
outputs equal the published forward pass's to rounding; the published weights were not at hand.

The benchmark that goes with it measures in linear colours and ignores a border of 40 pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lit_restore.errors import UserError
from lit_restore.networks.base import Network, reflect_to, require_counts, require_lists_of_counts
from lit_restore.networks.bsrt.alignment import PyramidAlignment, conv3, doubled, leaky
from lit_restore.networks.bsrt.flow import SpyNet, warp
from lit_restore.networks.bsrt.swin import ResidualGroup, SwinBlock, swin_blocks

_PLANES = 4
_COLOURS = 3


class BSRT(Network):
    """Bursts of packed RGGB frames in, linear RGB out. The defaults are BSRT-Small.

    Args:
        frames: frames of a burst; the fusion has weights of its own for each place.
        width: features of the alignment and of the enlargement.
        embed: channels of the Swin blocks.
        entry_depth: Swin blocks that each frame goes through before the alignment.
        depths: Swin blocks of each residual group after the fusion.
        heads: attention heads.
        window: side of the attention's windows, even.
        mlp_ratio: hidden channels of the blocks' MLPs over `embed`.
        groups: groups of channels with deformable offsets of their own.
        drop_path: probability of dropping a branch in training, rising linearly from 0 in the
            first block to this in the last.

    Raises:
        UserError: a number is not positive, `embed` no multiple of `heads`, `width` none of
            `groups`, `window` odd, or `drop_path` not in [0, 1).
    """

    def __init__(
        self,
        frames: int = 14,
        width: int = 64,
        embed: int = 60,
        entry_depth: int = 6,
        depths: Sequence[int] = (6, 6, 6, 6),
        heads: int = 6,
        window: int = 8,
        mlp_ratio: int = 2,
        groups: int = 8,
        drop_path: float = 0.1,
    ) -> None:
        super().__init__()
        require_counts(
            frames=frames, width=width, embed=embed, entry_depth=entry_depth, heads=heads,
            window=window, mlp_ratio=mlp_ratio, groups=groups,
        )  # fmt: skip
        require_lists_of_counts(depths=depths)
        _check(width, embed, heads, window, groups, drop_path)
        self.frames = frames
        self.multiple = window
        drops = torch.linspace(0, drop_path, entry_depth + sum(depths), device="cpu").tolist()
        swin = (embed, heads, window, mlp_ratio)

        self.spynet = SpyNet()
        self.conv_flow = conv3(1, 3)
        self.conv_first = conv3(_PLANES, embed)
        self.patch_embed = nn.ModuleDict({"norm": nn.LayerNorm(embed)})
        self.pre_layers = nn.ModuleList(swin_blocks(*swin, drops[:entry_depth]))
        self.pre_norm = nn.LayerNorm(embed)
        self.conv_after_pre_layer = conv3(embed, 4 * width)
        self._add_pyramid(width)
        self.align = PyramidAlignment(width, groups)
        self.fusion = nn.Conv2d(frames * width, embed, 1)
        self.layers = nn.ModuleList()
        for k, depth in enumerate(depths):
            first = entry_depth + sum(depths[:k])
            blocks = swin_blocks(*swin, drops[first : first + depth])
            self.layers.append(ResidualGroup(blocks, embed))
        self.norm = nn.LayerNorm(embed)
        self.conv_after_body = conv3(embed, embed)
        self._add_exit(width, embed)
        _init_linear(self)

    def _add_pyramid(self, width: int) -> None:
        self.fea_L2_conv1 = conv3(width, 2 * width, stride=2)
        self.fea_L3_conv1 = conv3(2 * width, 4 * width, stride=2)
        self.toplayer = nn.Conv2d(4 * width, width, 1)
        self.smooth1, self.smooth2 = conv3(width, width), conv3(width, width)
        self.latlayer1 = nn.Conv2d(2 * width, width, 1)
        self.latlayer2 = nn.Conv2d(width, width, 1)

    def _add_exit(self, width: int, embed: int) -> None:
        self.upconv1, self.upconv2 = conv3(embed, 4 * width), conv3(width, 4 * width)
        self.HRconv, self.conv_last = conv3(width, width), conv3(width, _COLOURS)
        self.skipup1, self.skipup2 = conv3(1, 4 * width), conv3(width, 4 * _COLOURS)

    def blocks(self) -> list[nn.Module]:
        """All Swin blocks, those before the alignment first."""
        return [module for module in self.modules() if isinstance(module, SwinBlock)]

    def forward(self, burst: Tensor) -> Tensor:
        """Restore frame 0 with the help of the others.

        Args:
            burst: (B, frames, 4, h, w), planes R, G, G, B of RGGB mosaics (2h, 2w), linear camera
                colours in [0, 1]; sides that are no multiples of `multiple` are reflected up to
                one, and the output cropped.

        Returns:
            (B, 3, 8h, 8w), linear camera RGB, not clipped.

        Raises:
            UserError: another number of frames.
        """
        if burst.ndim != 5 or burst.shape[1:3] != (self.frames, _PLANES):
            raise UserError(
                f"expects bursts (B, {self.frames}, {_PLANES}, h, w), got {tuple(burst.shape)}",
                where="burst",
            )
        height, width = burst.shape[-2:]
        rows, columns = (side + -side % self.multiple for side in (height, width))
        out = self._restored(reflect_to(burst, rows, columns))
        return out[..., : 8 * height, : 8 * width]

    def _restored(self, burst: Tensor) -> Tensor:
        mosaics = F.pixel_shuffle(burst, 2)
        coarse = leaky(F.pixel_shuffle(self.skipup1(mosaics[:, 0]), 2))
        skip = F.pixel_shuffle(self.skipup2(coarse), 2)

        x = leaky(self.fusion(self._aligned(self._pyramid(burst), self._flows(mosaics))))
        x = leaky(self.conv_after_body(self._body(x))) + x
        x = leaky(F.pixel_shuffle(self.upconv1(x), 2)) + coarse
        x = leaky(F.pixel_shuffle(self.upconv2(x), 2))
        out: Tensor = self.conv_last(leaky(self.HRconv(x))) + skip
        return out

    def _flows(self, mosaics: Tensor) -> list[Tensor]:
        """From frame 0 into each: (B, F, 2, 2h, 2w) and at half and a quarter of that size."""
        batch, frames = mosaics.shape[:2]
        pictures = self.conv_flow(mosaics.flatten(0, 1)).unflatten(0, (batch, frames))
        references = pictures[:, :1].expand_as(pictures).flatten(0, 1)
        flows = self.spynet(references, pictures.flatten(0, 1))
        return [flow.unflatten(0, (batch, frames)) for flow in flows]

    def _pyramid(self, burst: Tensor) -> list[Tensor]:
        """Features of all frames, (B, F, width, 2h, 2w) and at half and a quarter of that size."""
        fine = F.pixel_shuffle(self._entry(burst.flatten(0, 1)), 2)
        half = leaky(self.fea_L2_conv1(fine))
        quarter = leaky(self.toplayer(leaky(self.fea_L3_conv1(half))))
        half = self.smooth1(doubled(quarter) + self.latlayer1(half))
        fine = self.smooth2(doubled(half) + self.latlayer2(fine))
        return [level.unflatten(0, burst.shape[:2]) for level in (fine, half, quarter)]

    def _entry(self, frames: Tensor) -> Tensor:
        x = self.patch_embed["norm"](_tokens(leaky(self.conv_first(frames))))
        for block in self.pre_layers:
            x = block(x)
        out: Tensor = self.conv_after_pre_layer(_planes(self.pre_norm(x)))
        return out

    def _aligned(self, levels: Sequence[Tensor], flows: Sequence[Tensor]) -> Tensor:
        """(B, F · width, 2h, 2w). One frame at a time: the convolutions' buffers are large."""
        reference = [level[:, 0] for level in levels]
        aligned = []
        for k in range(self.frames):
            frame, flow = [level[:, k] for level in levels], [level[:, k] for level in flows]
            warped = [warp(x, by) for x, by in zip(frame, flow, strict=True)]
            aligned.append(self.align(frame, warped, reference, flow))
        return torch.cat(aligned, dim=1)

    def _body(self, x: Tensor) -> Tensor:
        # The norm is the entry's: the published network has one for both places.
        tokens = self.patch_embed["norm"](_tokens(x))
        for group in self.layers:
            tokens = group(tokens)
        return _planes(self.norm(tokens))


def _tokens(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1)


def _planes(x: Tensor) -> Tensor:
    return x.permute(0, 3, 1, 2)


def _init_linear(net: nn.Module) -> None:
    """Narrow normal weights for the transformers, as published; convolutions keep PyTorch's."""
    for module in net.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            nn.init.zeros_(module.bias)


def _check(width: int, embed: int, heads: int, window: int, groups: int, drop_path: float) -> None:
    if embed % heads:
        raise UserError(f"{embed} is no multiple of heads ({heads})", where="embed")
    if width % groups:
        raise UserError(f"{width} is no multiple of groups ({groups})", where="width")
    if window % 2:
        raise UserError(f"{window} is odd; every second block shifts by a half", where="window")
    if not 0 <= drop_path < 1:
        raise UserError(f"{drop_path} is not in [0, 1)", where="drop_path")
