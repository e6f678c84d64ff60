"""DiMSUM: Mamba over space and wavelet frequency (Phung et al., NeurIPS 2024, arXiv 2411.04168).

As its released weights have it, which differs from the paper's figures here and there (the skip
around the fusion is the normalised input, the residual stream is dropped at the end, the tokens of
the wavelet branch hold all bands of a sixteenth of the channels). What the release does otherwise
than the paper says, or less well than it could, is an option that is off by default.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lit_restore.errors import UserError, require_choice
from lit_restore.networks.backbone import Backbone
from lit_restore.networks.base import require_counts
from lit_restore.networks.dimsum.block import Block, SharedAttention, plain_norm
from lit_restore.networks.dimsum.layers import Fusion, RMSNorm
from lit_restore.networks.dimsum.mixer import Conditioning, Mixers
from lit_restore.networks.embeddings import (
    LabelEmbedder,
    modulate,
    unpatchify,
)
from lit_restore.ops.scan_orders import scan_order
from lit_restore.ops.wavelets import WaveletPacket


class DiMSUM(Backbone):
    """Velocity (or noise, score, data) of a flow at time t, of pictures or latents.

    Args:
        channels: of the picture or latent; 4 for the usual autoencoder's latents, 3 for pixels.
        size: height and width of the input, or one number for both.
        patch: side of the patches that become tokens.
        width: channels D of a token.
        depth: blocks.
        classes: class labels 0 … classes - 1; label `classes` is "none of them". 0: no labels.
        scan: order of the tokens in the spatial branch, see ops.scan_orders; a function of the
            block's number.
        wavelet_scan: the same of the wavelet branch.
        wavelet: pywavelets' name of the wavelet.
        levels: levels of the wavelet packet; 4^levels bands.
        layout: official (each token of the wavelet branch holds all bands of some channels, as
            the released weights need) or subband (one band of all channels, as the paper says).
        attention_every: the shared attention block is applied after every so many blocks; 0: never.
        attention_heads: heads of that block.
        fusion_heads: heads of each branch's cross-attention.
        fusion: what the cross-attentions exchange, q (as released) or k.
        state: size of the scan's state for each channel.
        taps: length of the causal convolution.
        expand: channels inside a mixer over channels of a branch.
        mlp_ratio: channels of the MLP's gate over D.
        drop_path: probability of dropping a block's work in training, rising linearly from 0.
        time_scale: factor on t before its sinusoids; 1 as released, 1000 turns them many times.
        conditioning: none; inert (the released weights' unused projection is kept); prefix (the
            mixers start from a token made of the time and class embedding).
        zero_branches: start with the gates of the branches and of the shared block closed.
        final_norm: the head reads the normalised residual stream instead of the last block alone.
        qk_norm: RMS norm of queries and keys.

    Raises:
        UserError: a number is not positive, or the grid of tokens does not fit the patch, the
            wavelet or the scan.
    """

    head_name = "head"

    def __init__(
        self,
        channels: int = 4,
        size: int | Sequence[int] = 32,
        patch: int = 2,
        width: int = 1024,
        depth: int = 16,
        classes: int = 1000,
        scan: str = "sweep-4",
        wavelet_scan: str = "window",
        wavelet: str = "haar",
        levels: int = 2,
        layout: Literal["official", "subband"] = "official",
        attention_every: int = 4,
        attention_heads: int = 16,
        fusion_heads: int = 8,
        fusion: Literal["q", "k"] = "q",
        state: int = 16,
        taps: int = 4,
        expand: int = 2,
        mlp_ratio: int = 4,
        drop_path: float = 0.0,
        time_scale: float = 1.0,
        conditioning: Conditioning = "none",
        zero_branches: bool = False,
        final_norm: bool = False,
        qk_norm: bool = False,
    ) -> None:
        super().__init__()
        require_counts(
            channels=channels, patch=patch, width=width, depth=depth, levels=levels, state=state,
            taps=taps, expand=expand, mlp_ratio=mlp_ratio, fusion_heads=fusion_heads,
            attention_heads=attention_heads,
        )  # fmt: skip
        _check_heads(width, fusion_heads, attention_heads if attention_every else 1)
        for name, number in (("classes", classes), ("attention_every", attention_every)):
            if number < 0:
                raise UserError(f"{number} is negative; 0 is for none", where=name)
        if not 0 <= drop_path < 1:
            raise UserError(f"{drop_path} is not in [0, 1)", where="drop_path")
        require_choice(fusion, ("q", "k"), where="fusion")
        require_choice(conditioning, get_args(Conditioning), where="conditioning")
        self.width, self.depth, self.attention_every = width, depth, attention_every
        self._stem(
            channels=channels, size=size, patch=patch, width=width, classes=classes,
            time_scale=time_scale,
        )  # fmt: skip
        self.y_embedder = LabelEmbedder(classes, width)
        # Block i drops the work of block i - 1, whose rate is linear in its number.
        drops = [drop_path * max(0, i - 1) / max(1, depth - 1) for i in range(depth)]
        hidden = mlp_ratio * width
        self.trunk = nn.ModuleList(
            Block(
                width,
                mixers=Mixers(
                    width // 2, depth=depth, state=state, taps=taps, expand=expand,
                    conditioning=conditioning, embedding=width,
                ),
                fusion=Fusion(width, fusion_heads, swap=fusion, qk_norm=qk_norm),
                packet=WaveletPacket(
                    *self.grid, width // 2, wavelet=wavelet, levels=levels, layout=layout
                ),
                index=torch.stack(
                    [scan_order(kind, i, *self.grid).int() for kind in (scan, wavelet_scan)]
                ),
                hidden=hidden,
                drop=drops[i],
            )
            for i in range(depth)
        )  # fmt: skip
        self.shared: SharedAttention | None = None
        if 0 < attention_every <= depth:
            self.shared = SharedAttention(
                width, heads=attention_heads, hidden=hidden, qk_norm=qk_norm
            )
        self.norm_f = RMSNorm(width, eps=1e-5) if final_norm else None
        self.head = nn.Linear(width, patch**2 * channels)
        self.parts = [6 * width] * depth + [6 * width] * (self.shared is not None) + [2 * width]
        self.modulation = nn.Linear(width, sum(self.parts))
        self._start(zero_branches)

    def _start(self, zero_branches: bool) -> None:
        """As released: gates of MLPs and head closed, those of the branches open at random."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)
        for layer in (self.t_embedder.mlp[0], self.t_embedder.mlp[2]):
            nn.init.normal_(layer.weight, std=0.02)  # type: ignore[arg-type]
        nn.init.normal_(self.y_embedder.embedding_table.weight, std=0.02)
        nn.init.zeros_(self.head.weight)
        with torch.no_grad():
            *blocks, last = torch.split(self.modulation.weight, self.parts)
            last.zero_()
            for rows in blocks[: self.depth]:
                rows[3 * self.width :].zero_()  # of the MLP
                if zero_branches:
                    rows.view(6, self.width, -1)[:3].zero_()
            if zero_branches and self.shared is not None:
                blocks[-1].zero_()

    def blocks(self) -> list[nn.Module]:
        """The blocks in their order, then the shared one."""
        return [*self.trunk, *([self.shared] if self.shared is not None else [])]

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
        c = self.t_embedder(t) + self.y_embedder(y, len(x))
        *mods, of_head = torch.split(self.modulation(F.silu(c)), self.parts, dim=-1)
        r = None
        for number, block in enumerate(self.trunk, 1):
            h, r = block(h, r, mods[number - 1], c)
            if self.shared is not None and number % self.attention_every == 0:
                h = self.shared(h, mods[-1])
        if self.norm_f is not None and r is not None:
            h = self.norm_f(r + h).to(h.dtype)
        shift, scale = of_head.chunk(2, dim=-1)
        out = self.head(modulate(plain_norm(h), shift, scale))
        return unpatchify(out, self.grid, self.patch, self.channels)


def _check_heads(width: int, fusion: int, attention: int) -> None:
    for name, heads, channels in (
        ("fusion_heads", 2 * fusion, width),
        ("attention_heads", attention, width),
    ):
        if channels % heads:
            raise UserError(f"do not divide width {width}", where=name)
