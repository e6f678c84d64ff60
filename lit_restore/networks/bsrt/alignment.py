"""Flow-guided alignment of features by deformable convolutions on a pyramid.

Pyramid, cascading and deformable alignment is EDVR's (Wang et al. 2019, arXiv 1905.02716); offsets
that add a bounded correction to an optical flow are BSRT's (Luo et al. 2022, arXiv 2204.08332,
section 3.3). The modulated deformable convolution is of Zhu et al. 2019, arXiv 1811.11168.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SLOPE = 0.1
"""Of every leaky ReLU of BSRT below zero."""

_REACH = 10.0
"""How far an offset may lead away from the flow, pixels."""


class DeformableConv(nn.Module):
    """3×3 convolution whose taps lie where other features say, with weights they give.

    The last layer that gives the offsets is zero at first: each tap lies where the flow points (or
    where a plain convolution has it), and counts half.

    Args:
        width: channels in and out.
        groups: groups of input channels that share their offsets.
    """

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.groups = groups
        limit = (9 * width) ** -0.5
        weight = torch.empty(width, width, 3, 3)
        self.weight = nn.Parameter(nn.init.uniform_(weight, -limit, limit))
        self.bias = nn.Parameter(torch.zeros(width))
        self.conv_offset_mask = nn.Conv2d(width, groups * 3 * 9, 3, padding=1)
        nn.init.zeros_(self.conv_offset_mask.weight)
        nn.init.zeros_(cast("Tensor", self.conv_offset_mask.bias))

    def forward(self, x: Tensor, guide: Tensor, flow: Tensor | None = None) -> Tensor:
        """Convolve, in float32 at least inside, whatever autocast says.

        Args:
            x: (B, width, H, W).
            guide: (B, width, H, W), what the offsets and the weights of the taps are made of.
            flow: None for offsets that are free, or (B, 2, H, W), channels (x, y), from which
                they stray by 10 pixels at most.

        Returns:
            (B, width, H, W).
        """
        taps = self.groups * 9
        offset, mask = self.conv_offset_mask(guide).split([2 * taps, taps], dim=1)
        exact = torch.promote_types(x.dtype, torch.float32)
        offset, mask = offset.to(exact), mask.to(exact).sigmoid()
        if flow is not None:
            # Offsets are (y, x) for each group and tap, flows (x, y).
            offset = _REACH * offset.tanh() + flow.to(exact).flip(1).repeat(1, taps, 1, 1)
        weight, bias = self.weight.to(exact), self.bias.to(exact)
        return _deformed(x.to(exact), offset, mask, weight, bias).to(x.dtype)


def _deformed(x: Tensor, offset: Tensor, mask: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    # Importing torchvision takes as long as all else together, and only this needs it.
    from torchvision.ops import deform_conv2d

    # How many groups have offsets of their own it infers from the channels of `offset`; the
    # groups of the convolution itself are one, as the weight's shape says.
    with torch.autocast("cpu" if x.is_meta else x.device.type, enabled=False):  # as in `SpyNet`
        out: Tensor = deform_conv2d(x, offset, weight, bias, padding=(1, 1), mask=mask)
    return out


class PyramidAlignment(nn.Module):
    """One frame's features brought to where the reference frame has them.

    Coarse to fine: each level makes its offsets of the frame's features warped by the flow, the
    reference's, the flow, and the coarser level's offsets; a last convolution with free offsets
    refines the finest. Names are the published network's; L1 is the finest level.

    Args:
        width: channels.
        groups: groups of channels that share their offsets.
    """

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.L3_offset_conv1 = conv3(2 * width + 2, width)
        self.L3_offset_conv2 = conv3(width, width)
        self.L3_dcnpack = DeformableConv(width, groups)
        self.L2_offset_conv1 = conv3(2 * width + 2, width)
        self.L2_offset_conv2 = conv3(2 * width, width)
        self.L2_offset_conv3 = conv3(width, width)
        self.L2_dcnpack = DeformableConv(width, groups)
        self.L2_fea_conv = conv3(2 * width, width)
        self.L1_offset_conv1 = conv3(2 * width + 2, width)
        self.L1_offset_conv2 = conv3(2 * width, width)
        self.L1_offset_conv3 = conv3(width, width)
        self.L1_dcnpack = DeformableConv(width, groups)
        self.L1_fea_conv = conv3(2 * width, width)
        self.cas_offset_conv1 = conv3(2 * width, width)
        self.cas_offset_conv2 = conv3(width, width)
        self.cas_dcnpack = DeformableConv(width, groups)

    def forward(
        self,
        frame: Sequence[Tensor],
        warped: Sequence[Tensor],
        reference: Sequence[Tensor],
        flows: Sequence[Tensor],
    ) -> Tensor:
        """Align one frame of each burst.

        Args:
            frame: features, finest first: (B, width, H, W), (B, width, H/2, W/2), then H/4, W/4.
            warped: the same, warped by the flows.
            reference: the reference frame's.
            flows: (B, 2, …) from the reference into the frame, of the same sizes.

        Returns:
            (B, width, H, W).
        """
        # Flows, and what they have warped, are float32 under autocast too.
        seen = [
            torch.cat([w.to(r.dtype), r, f.to(r.dtype)], dim=1)
            for w, r, f in zip(warped, reference, flows, strict=True)
        ]
        guide = leaky(self.L3_offset_conv2(leaky(self.L3_offset_conv1(seen[2]))))
        features = leaky(self.L3_dcnpack(frame[2], guide, flows[2]))

        finer = leaky(self.L2_offset_conv1(seen[1]))
        # An offset of the coarser level is twice as many pixels here.
        finer = leaky(self.L2_offset_conv2(torch.cat([finer, 2 * doubled(guide)], dim=1)))
        guide = leaky(self.L2_offset_conv3(finer))
        moved = self.L2_dcnpack(frame[1], guide, flows[1])
        features = leaky(self.L2_fea_conv(torch.cat([moved, doubled(features)], dim=1)))

        finer = leaky(self.L1_offset_conv1(seen[0]))
        finer = leaky(self.L1_offset_conv2(torch.cat([finer, 2 * doubled(guide)], dim=1)))
        guide = leaky(self.L1_offset_conv3(finer))
        moved = self.L1_dcnpack(frame[0], guide, flows[0])
        features = self.L1_fea_conv(torch.cat([moved, doubled(features)], dim=1))

        guide = leaky(self.cas_offset_conv1(torch.cat([features, reference[0]], dim=1)))
        out: Tensor = self.cas_dcnpack(features, leaky(self.cas_offset_conv2(guide)))
        return out


def leaky(x: Tensor) -> Tensor:
    """Leaky ReLU of slope 0.1."""
    return F.leaky_relu(x, SLOPE)


def doubled(x: Tensor) -> Tensor:
    """(B, C, H, W) → (B, C, 2H, 2W), bilinear."""
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


def conv3(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    """A 3×3 convolution that keeps the size, or halves it with stride 2."""
    return nn.Conv2d(inputs, outputs, 3, stride, padding=1)
