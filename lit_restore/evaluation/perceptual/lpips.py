"""LPIPS, version 0.1 (Zhang et al. 2018, arXiv 1801.03924, eq. 1), in float32.

Activations of a classifier, each pixel's channels scaled to length 1, are subtracted and squared;
fixed weights (the "heads", at least 0, fitted to people's judgements) sum the channels, and the
means over the pixels of the five stages are added.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from lit_restore.errors import UserError
from lit_restore.evaluation.metrics import Values
from lit_restore.evaluation.perceptual.backbones import (
    ALEXNET,
    VGG16,
    Backbone,
    Plan,
    open_backbone,
)
from lit_restore.evaluation.perceptual.pixels import check_pair, to_unit
from lit_restore.evaluation.perceptual.weights import Requirement, WeightFolders
from lit_restore.io.torch_files import load_foreign_weights

NetName: TypeAlias = Literal["alex", "vgg"]

_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
"""Of images in [-1, 1]: ImageNet's means and deviations, as the authors rounded them."""
_EPSILON = 1e-10


def _heads(name: str, sha256: str, size: int) -> Requirement:
    return Requirement(
        file=f"lpips-{name}-{sha256[:8]}.pth",
        sha256=sha256,
        bytes=size,
        licence="BSD-2-Clause",
        how="inside the packages torchmetrics and lpips",
        inside=(
            ("lpips", f"weights/v0.1/{name}.pth"),
            ("torchmetrics", f"functional/image/lpips_models/{name}.pth"),
        ),
    )


NETS: dict[NetName, tuple[Plan, Requirement]] = {
    "alex": (ALEXNET, _heads("alex", "df73285e35b22355", 6009)),
    "vgg": (VGG16, _heads("vgg", "a78928a0af1e5f0f", 7289)),
}
"""Name → convolutions, and the file of the heads."""


@dataclass(frozen=True)
class LPIPS:
    """The distance of two pictures on one network.

    Args:
        net: frozen.
        heads: weights (C,) of each stage's channels.
    """

    net: Backbone
    heads: Sequence[Tensor]

    def __call__(self, output: Values, target: Values) -> float:
        """Of one picture, both (H, W, 1 or 3) in [0, 255]; grey in all three channels.

        Raises:
            ValueError: the sizes differ or are too small for the network.
        """
        check_pair(output, target, least=self.net.plan.least)
        a, b = (2 * to_unit(image) - 1 for image in (output, target))
        return float(self.distance(a, b))

    @torch.no_grad()
    def distance(self, a: Tensor, b: Tensor) -> Tensor:
        """Of images (B, 3, H, W) in [-1, 1], float32: (B,), 0 where they are equal."""
        assert a.shape == b.shape, (a.shape, b.shape)
        pairs = zip(self.net(_normalised(a)), self.net(_normalised(b)), self.heads, strict=True)
        return torch.stack([_stage(x, y, head) for x, y, head in pairs]).sum(0)


def open_lpips(name: NetName, folders: WeightFolders) -> LPIPS:
    """With the published weights.

    Raises:
        MissingWeights: a file is nowhere.
        UserError: one is damaged or another's.
    """
    plan, need = NETS[name]
    _, path = folders.find(need)
    stored = load_foreign_weights(path, legacy=True)  # its hash is checked
    heads = [stored[f"lin{k}.model.1.weight"].flatten().float() for k in range(len(plan.stages))]
    if tuple(map(len, heads)) != plan.channels:
        raise UserError(f"holds no heads of {plan.name}", where=path)
    return LPIPS(open_backbone(plan, folders), heads)


def _normalised(x: Tensor) -> Tensor:
    shift, scale = (x.new_tensor(values).view(1, 3, 1, 1) for values in (_SHIFT, _SCALE))
    return (x - shift) / scale


def _stage(x: Tensor, y: Tensor, head: Tensor) -> Tensor:
    """(B, C, h, w) twice → (B,)."""
    squared = (_unit_length(x) - _unit_length(y)) ** 2
    return torch.einsum("bchw,c->bhw", squared, head.to(squared)).mean((1, 2))


def _unit_length(x: Tensor) -> Tensor:
    return x / (x.square().sum(1, keepdim=True).sqrt() + _EPSILON)
