"""DISTS (Ding et al. 2020, arXiv 2004.07728): structure and texture on VGG16, in float32.

Of the picture and the maps of five stages, each channel's means are compared (texture) and its
correlation (structure), as SSIM does over the whole map; fitted weights α and β sum them. Pooling
is the root of blurred squares (§3.1), which does not alias as the largest value does. Pictures keep
their size; some implementations shrink the shorter side to 256 first, which is another number.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lit_restore.errors import UserError
from lit_restore.evaluation.metrics import Values
from lit_restore.evaluation.perceptual.backbones import VGG16, Backbone, open_backbone
from lit_restore.evaluation.perceptual.pixels import check_pair, to_unit
from lit_restore.evaluation.perceptual.weights import Requirement, WeightFolders
from lit_restore.io.torch_files import load_foreign_weights

_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_C1 = _C2 = 1e-6
CHANNELS = (3, *VGG16.channels)
"""Of the picture and the five maps."""

WEIGHTS = Requirement(
    file="dists-f5e65c96.pt",
    sha256="f5e65c96230b7f6c",
    bytes=12_288,
    licence="MIT",
    how="weights.pt inside the wheel DISTS-pytorch 0.1 of PyPI, under this name",
    inside=(("DISTS_pytorch", "weights.pt"),),
)


class L2Pool(nn.Module):
    """Root of the blurred squares, every second pixel (eq. 3); the window is Hanning's, 3x3."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → (B, C, ceil(H / 2), ceil(W / 2))."""
        row = torch.hann_window(4, device=x.device, dtype=x.dtype)[1:]  # ½, 1, ½
        window = torch.outer(row, row) / row.sum() ** 2
        kernel = window.expand(x.shape[1], 1, 3, 3)
        return (F.conv2d(x**2, kernel, stride=2, padding=1, groups=x.shape[1]) + 1e-12).sqrt()


@dataclass(frozen=True)
class DISTS:
    """The distance of two pictures.

    Args:
        net: VGG16 with `L2Pool`, frozen.
        alpha: weights of texture, one for each channel of `CHANNELS`.
        beta: weights of structure, likewise.
    """

    net: Backbone
    alpha: Tensor
    beta: Tensor

    def __call__(self, output: Values, target: Values) -> float:
        """Of one picture, both (H, W, 1 or 3) in [0, 255]; grey in all three channels.

        Raises:
            ValueError: the sizes differ or are too small for the network.
        """
        check_pair(output, target, least=VGG16.least)
        return float(self.distance(to_unit(output), to_unit(target)))

    @torch.no_grad()
    def distance(self, a: Tensor, b: Tensor) -> Tensor:
        """Of images (B, 3, H, W) in [0, 1], float32: (B,), 0 where they are equal (eq. 6)."""
        total = self.alpha.sum() + self.beta.sum()
        alphas, betas = (torch.split(w / total, [*CHANNELS]) for w in (self.alpha, self.beta))
        similar = a.new_zeros(len(a))
        for x, y, alpha, beta in zip(self._maps(a), self._maps(b), alphas, betas, strict=True):
            texture, structure = _compared(x, y)
            similar = similar + texture @ alpha + structure @ beta
        return 1 - similar

    def _maps(self, x: Tensor) -> list[Tensor]:
        mean, deviation = (x.new_tensor(v).view(1, 3, 1, 1) for v in (_MEAN, _DEVIATION))
        return [x, *self.net((x - mean) / deviation)]


def open_dists(folders: WeightFolders) -> DISTS:
    """With the published weights.

    Raises:
        MissingWeights: a file is nowhere.
        UserError: one is damaged or another's.
    """
    _, path = folders.find(WEIGHTS)
    stored = load_foreign_weights(path, legacy=True)  # its hash is checked
    alpha, beta = (stored[name].flatten().float() for name in ("alpha", "beta"))
    if not len(alpha) == len(beta) == sum(CHANNELS):
        raise UserError("holds no weights of DISTS", where=path)
    return DISTS(open_backbone(VGG16, folders, L2Pool()), alpha, beta)


def _compared(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """(B, C, h, w) twice → texture and structure (eq. 4 and 5), both (B, C), 1 where equal."""
    mean_x, mean_y = x.mean((2, 3)), y.mean((2, 3))
    texture = (2 * mean_x * mean_y + _C1) / (mean_x**2 + mean_y**2 + _C1)
    off_x, off_y = x - mean_x[..., None, None], y - mean_y[..., None, None]
    variances = off_x.square().mean((2, 3)) + off_y.square().mean((2, 3))
    covariance = (off_x * off_y).mean((2, 3))
    return texture, (2 * covariance + _C2) / (variances + _C2)
