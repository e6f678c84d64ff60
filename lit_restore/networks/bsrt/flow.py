"""Optical flow from coarse to fine, and warping by it.

SpyNet (Ranjan and Black 2017, arXiv 1611.00850): at every level of a pyramid a small network
corrects the flow that comes from the level below. Flows are in pixels of their own level, channels
(x, y), and point from the reference into the other frame: reference(p) ~ other(p + flow(p)).
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_LEVELS = 6
_COARSEST = 2 ** (_LEVELS - 1)


def warp(x: Tensor, flow: Tensor, *, beyond: str = "zeros") -> Tensor:
    """Fetch each pixel from where the flow points, bilinearly, in float32 at least.

    Args:
        x: (B, C, H, W).
        flow: (B, 2, H, W), pixels, channels (x, y).
        beyond: what lies outside of x: "zeros", or "border" for its outermost pixels.

    Returns:
        (B, C, H, W).
    """
    height, width = x.shape[-2:]
    exact = torch.promote_types(x.dtype, torch.float32)
    x, flow = x.to(exact), flow.to(exact)
    columns = torch.arange(width, dtype=exact, device=x.device)
    rows = torch.arange(height, dtype=exact, device=x.device)[:, None]
    # grid_sample has the first pixel at -1 and the last at 1 (align_corners).
    across = 2 * (columns + flow[:, 0]) / max(width - 1, 1) - 1
    down = 2 * (rows + flow[:, 1]) / max(height - 1, 1) - 1
    grid = torch.stack([across, down], dim=-1)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode=beyond, align_corners=True)


class FlowStep(nn.Module):
    """Five 7×7 convolutions: (reference, warped other, flow) → a correction of the flow."""

    def __init__(self) -> None:
        super().__init__()
        widths = (8, 32, 64, 32, 16, 2)
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(widths):
            layers += [nn.Conv2d(inputs, outputs, 7, padding=3), nn.ReLU()]
        self.basic_module = nn.Sequential(*layers[:-1])

    def forward(self, x: Tensor) -> Tensor:
        """(B, 8, H, W) → (B, 2, H, W)."""
        out: Tensor = self.basic_module(x)
        return out


class SpyNet(nn.Module):
    """Flows between pairs of RGB images at full, half and quarter size.

    Without trained weights the last layer of every step is zero, and so are all flows: alignment
    starts where it is neutral. (Published training starts from weights trained on Sintel.)
    """

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.basic_module = nn.ModuleList(FlowStep() for _ in range(_LEVELS))
        # The colour statistics of ImageNet, for which it was trained.
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1))
        for step in self.basic_module:
            assert isinstance(step, FlowStep)
            for parameter in step.basic_module[-1].parameters():
                nn.init.zeros_(parameter)

    def forward(self, reference: Tensor, other: Tensor) -> list[Tensor]:
        """Flows from `reference` into `other`, in float32 under autocast too.

        Args:
            reference: (B, 3, H, W), H and W multiples of 4.
            other: the same shape.

        Returns:
            Three flows: (B, 2, H, W), (B, 2, H/2, W/2), (B, 2, H/4, W/4).
        """
        # The meta device, on which FLOPs are counted, has no autocast.
        kind = "cpu" if reference.is_meta else reference.device.type
        with torch.autocast(kind, enabled=False):
            return self._flows(reference.to(self.mean.dtype), other.to(self.mean.dtype))

    def _flows(self, reference: Tensor, other: Tensor) -> list[Tensor]:
        size = reference.shape[-2:]
        references, others = self._pyramid(reference), self._pyramid(other)
        flow = torch.zeros_like(references[0][:, :2])
        flows: list[Tensor] = []
        for level, step in enumerate(self.basic_module):
            if level:
                flow = 2 * F.interpolate(flow, scale_factor=2, mode="bilinear", align_corners=True)
            moved = warp(others[level], flow, beyond="border").to(flow.dtype)
            flow = flow + step(torch.cat([references[level], moved, flow], dim=1))
            flows.insert(0, flow)
        return [_resized(f, (size[0] >> k, size[1] >> k)) for k, f in enumerate(flows[:3])]

    def _pyramid(self, x: Tensor) -> list[Tensor]:
        """Coarsest first, of sides that halve five times without a remainder."""
        height, width = (-(-side // _COARSEST) * _COARSEST for side in x.shape[-2:])
        x = F.interpolate(x, size=(height, width), mode="bilinear", align_corners=False)
        levels = [(x - self.mean) / self.std]
        while len(levels) < _LEVELS:
            levels.insert(0, F.avg_pool2d(levels[0], 2))
        return levels


def _resized(flow: Tensor, size: tuple[int, int]) -> Tensor:
    """A flow at another size, its vectors in pixels of that size."""
    ratios = flow.new_tensor([size[1] / flow.shape[3], size[0] / flow.shape[2]])
    out = F.interpolate(flow, size=size, mode="bilinear", align_corners=False)
    return out * ratios.view(1, 2, 1, 1)
