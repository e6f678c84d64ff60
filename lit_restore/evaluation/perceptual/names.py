"""The perceptual metrics there are: what a column of each is called and means.

Apart from `meters`, which computes them, so that listing the protocols imports no network.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

PerceptualName: TypeAlias = Literal["lpips-alex", "lpips-vgg", "dists", "niqe", "niqe_d", "topiq_d"]


@dataclass(frozen=True, kw_only=True)
class Named:
    """How a metric appears in tables. All are better when lower."""

    title: str
    digits: int
    """Decimals worth printing."""
    definition: str
    """One line below the table, with the digests of the only weights that give these numbers."""


def _lpips(network: str, backbone: str, heads: str) -> str:
    return (
        f"LPIPS v0.1 on {network} (convolutions {backbone}, heads {heads}), float32, the whole "
        "picture in RGB; lower is better"
    )


PERCEPTUAL: dict[PerceptualName, Named] = {
    "lpips-alex": Named(
        title="LPIPS-Alex",
        digits=4,
        definition=_lpips("AlexNet", "2b566cc3a4d6f0a7", "df73285e35b22355"),
    ),
    "lpips-vgg": Named(
        title="LPIPS-VGG",
        digits=4,
        definition=_lpips("VGG16", "40acdda7c6b05249", "a78928a0af1e5f0f"),
    ),
    "dists": Named(
        title="DISTS",
        digits=4,
        definition="DISTS on VGG16 (convolutions 40acdda7c6b05249, weights f5e65c96230b7f6c), "
        "float32, the whole picture in RGB at its own size; lower is better",
    ),
    "niqe": Named(
        title="NIQE",
        digits=3,
        definition="NIQE: no reference; luma rounded to whole numbers, blocks of 96x96 over the "
        "whole picture, two scales, parameters 2a7c182a68c9e7f1; lower is better",
    ),
    "niqe_d": Named(
        title="NIQE_D",
        digits=3,
        definition="NIQE_D = |NIQE(output) - NIQE(target)| of each picture; lower is better",
    ),
    "topiq_d": Named(
        title="TOPIQ_D",
        digits=4,
        definition="TOPIQ_D = |TOPIQ_NR(output) - TOPIQ_NR(target)| of each picture, TOPIQ_NR of "
        "KonIQ-10k (cfanet_nr_koniq_res50-9a73138b.pth) by the user's own pyiqa; lower is better",
    ),
}
"""Column name → how it appears. A new one is one entry here and one of `meters.OPENERS`."""
