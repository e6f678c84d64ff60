"""DiT: a transformer over patches whose norms are steered by time and class (adaLN-Zero).

Peebles & Xie, "Scalable Diffusion Models with Transformers", ICCV 2023, arXiv 2212.09748, section
3.2; trained on flows it is SiT (Ma et al., arXiv 2401.08740). Differences: the position embedding
is learned (from the fixed one), and times in [0, 1] are stretched to their [0, 1000].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn
from torch.nn import functional as F

from lit_restore.errors import UserError
from lit_restore.networks.backbone import Backbone
from lit_restore.networks.base import require_counts
from lit_restore.networks.embeddings import (
    HeadNorm,
    LabelEmbedder,
    drop_path,
    modulate,
    unpatchify,
    zero,
)

_TIME_SCALE = 1000.0


class DiT(Backbone):
    """Velocity of a flow at time t, of pictures or latents of one size; zero at the start.

    Args:
        channels: of the picture or latent; 4 for the usual autoencoder's latents, 3 for pixels.
        size: [height, width] of the input, or one number for both.
        patch: side of the patches that become tokens.
        width: channels D of a token, a multiple of 4 and of `heads`.
        depth: blocks.
        heads: attention heads.
        classes: class labels 0 … classes - 1; label `classes` is "none of them". 0: no labels.
        mlp_ratio: channels inside the MLPs over D.
        qk_norm: RMS norm of queries and keys, head by head.
        drop_path: probability of dropping a branch in training, rising linearly from 0 in the first
            block to this in the last.

    Raises:
        UserError: a number is not positive, the patch does not divide `size`, the heads not `width`
            (nor 4), or `drop_path` is not in [0, 1).
    """

    head_name = "final_layer.linear"

    def __init__(
        self,
        channels: int = 4,
        size: int | Sequence[int] = 32,
        patch: int = 2,
        width: int = 384,
        depth: int = 12,
        heads: int = 6,
        classes: int = 1000,
        mlp_ratio: float = 4.0,
        qk_norm: bool = False,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        require_counts(channels=channels, patch=patch, width=width, depth=depth, heads=heads)
        hidden = _check(width, heads, classes, mlp_ratio, drop_path)
        self._stem(
            channels=channels, size=size, patch=patch, width=width, classes=classes,
            time_scale=_TIME_SCALE,
        )  # fmt: skip
        self.y_embedder = LabelEmbedder(classes, width) if classes else None
        rates = [drop_path * i / max(depth - 1, 1) for i in range(depth)]
        self.trunk = nn.ModuleList(
            Block(width, heads, hidden, qk_norm=qk_norm, drop=rate) for rate in rates
        )
        self.final_layer = FinalLayer(width, patch**2 * channels)
        self._start()

    def _start(self) -> None:
        """Xavier's uniform weights, small embeddings, and nothing out of any branch or the head."""
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)
        nn.init.xavier_uniform_(self.x_embedder.proj.weight.flatten(1))
        nn.init.zeros_(cast("Tensor", self.x_embedder.proj.bias))
        for name, weight in self.t_embedder.mlp.named_parameters():
            if name.endswith("weight"):
                nn.init.normal_(weight, std=0.02)
        if self.y_embedder is not None:
            nn.init.normal_(self.y_embedder.embedding_table.weight, std=0.02)
        for module in self.modules():
            if isinstance(module, Block | FinalLayer):
                zero(module.modulation)
        zero(self.final_layer.linear)

    def blocks(self) -> list[nn.Module]:
        """The transformer blocks in their order."""
        return list(self.trunk)

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """Estimate the velocity.

        Args:
            x: (B, channels, H, W) of `size`.
            t: times (B,) in [0, 1], 0 noise, 1 data.
            y: labels (B,) int64, `classes` for none; None for none at all.

        Returns:
            (B, channels, H, W).

        Raises:
            UserError: the input is of another size, or labels are given to a network without.
        """
        h = self.tokens(x, y)
        c = self.t_embedder(t)
        if self.y_embedder is not None:
            c = c + self.y_embedder(y, len(x))
        c = F.silu(c)
        for block in self.trunk:
            h = block(h, c)
        return unpatchify(self.final_layer(h, c), self.grid, self.patch, self.channels)


class Block(nn.Module):
    """Attention and MLP, each between a modulated norm and a gate (figure 3, adaLN-Zero).

    Args:
        width: channels D.
        heads: attention heads.
        hidden: channels inside the MLP.
        qk_norm: normalise queries and keys.
        drop: probability of dropping either branch in training.
    """

    def __init__(self, width: int, heads: int, hidden: int, *, qk_norm: bool, drop: float) -> None:
        super().__init__()
        self.drop = drop
        self.modulation = nn.Linear(width, 6 * width)
        self.attn = Attention(width, heads, qk_norm=qk_norm)
        self.mlp = nn.Sequential(
            nn.Linear(width, hidden), nn.GELU(approximate="tanh"), nn.Linear(hidden, width)
        )

    def forward(self, h: Tensor, c: Tensor) -> Tensor:
        """Tokens (B, N, D) and activated conditioning (B, D) → tokens."""
        shift, scale, gate, shift_2, scale_2, gate_2 = self.modulation(c).chunk(6, dim=-1)
        change = self.attn(modulate(_norm(h), shift, scale))
        h = h + drop_path(gate.unsqueeze(1) * change, self.drop, self.training)
        change = self.mlp(modulate(_norm(h), shift_2, scale_2))
        return h + drop_path(gate_2.unsqueeze(1) * change, self.drop, self.training)


class Attention(nn.Module):
    """Softmax attention of all tokens to all, with several heads.

    Args:
        width: channels D.
        heads: number of heads, which divides D.
        qk_norm: RMS norm of queries and keys of each head.
    """

    def __init__(self, width: int, heads: int, *, qk_norm: bool) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.q_norm = HeadNorm(width // heads) if qk_norm else None
        self.k_norm = HeadNorm(width // heads) if qk_norm else None

    def forward(self, h: Tensor) -> Tensor:
        """(B, N, D) → (B, N, D)."""
        qkv = self.qkv(h).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        attended = F.scaled_dot_product_attention(q, k, v)
        return cast("Tensor", self.proj(attended.transpose(1, 2).flatten(2)))


class FinalLayer(nn.Module):
    """Modulated norm, then a linear layer to the pixels of each patch.

    Args:
        width: channels D.
        pixels: values of a patch.
    """

    def __init__(self, width: int, pixels: int) -> None:
        super().__init__()
        self.modulation = nn.Linear(width, 2 * width)
        self.linear = nn.Linear(width, pixels)

    def forward(self, h: Tensor, c: Tensor) -> Tensor:
        """Tokens (B, N, D) and activated conditioning (B, D) → (B, N, pixels)."""
        shift, scale = self.modulation(c).chunk(2, dim=-1)
        return cast("Tensor", self.linear(modulate(_norm(h), shift, scale)))


def _norm(h: Tensor) -> Tensor:
    return F.layer_norm(h, h.shape[-1:], eps=1e-6)


def _check(width: int, heads: int, classes: int, mlp_ratio: float, drop_path: float) -> int:
    """The MLPs' inner width, when all numbers make sense."""
    if width % heads:
        raise UserError(f"{heads} does not divide width {width}", where="heads")
    if not isinstance(classes, int) or classes < 0:
        raise UserError(f"expects a number of classes, 0 for none, got {classes}", where="classes")
    if not (math.isfinite(mlp_ratio) and mlp_ratio * width >= 1):
        raise UserError(f"{mlp_ratio} leaves no channel of width {width}", where="mlp_ratio")
    if not 0 <= drop_path < 1:
        raise UserError(f"{drop_path} is not in [0, 1)", where="drop_path")
    return int(mlp_ratio * width)
