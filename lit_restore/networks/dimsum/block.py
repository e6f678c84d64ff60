"""DiMSUM's two kinds of block (Phung et al., arXiv 2411.04168; spec of the released weights).

Every block gets its modulation (shifts, scales, gates) ready-made: one product at the network's
root computes those of all blocks.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lit_restore.networks.dimsum.layers import GROUPS, Fusion, GatedMLP, QKNorm, RMSNorm, attend
from lit_restore.networks.dimsum.mixer import Mixers
from lit_restore.networks.embeddings import drop_path, modulate
from lit_restore.ops.wavelets import WaveletPacket


class Block(nn.Module):
    """Spatial and wavelet mixers side by side, their fusion, and a gated MLP.

    Two streams run through the blocks: hidden h, and the residual r to which it is added before
    each norm. The skip around fusion is the normalised sum, as released.

    Args:
        width: channels D.
        mixers: both Mamba mixers.
        fusion: the cross-attention between the branches.
        packet: the wavelet transform of the second half of the channels.
        index: (2, N) int, the scan order of each branch.
        hidden: channels of the MLP's gate.
        drop: probability by which the incoming h, the last block's work, is dropped.
    """

    index: Tensor

    def __init__(
        self,
        width: int,
        *,
        mixers: Mixers,
        fusion: Fusion,
        packet: WaveletPacket,
        index: Tensor,
        hidden: int,
        drop: float,
    ) -> None:
        super().__init__()
        self.drop = drop
        self.norm = RMSNorm(width, eps=1e-5)
        self.mixers = mixers
        self.packet = packet
        self.fusion = fusion
        self.norm_2 = RMSNorm(width, eps=1e-5)
        self.mlp = GatedMLP(width, hidden)
        self.register_buffer("index", index, persistent=False)

    def forward(
        self, h: Tensor, r: Tensor | None, modulation: Tensor, c: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """One block.

        Args:
            h: hidden (B, N, D).
            r: residual (B, N, D) in float32 or float64; none before the first block.
            modulation: (B, 6 D): shift, scale, gate (D/2 each) of the spatial branch, the same
                of the wavelet branch, the same (D each) of the MLP.
            c: time and class embedding (B, E), for conditioned mixers.

        Returns:
            The new h and r.
        """
        r = residual(h) if r is None else r + drop_path(h, self.drop, self.training)
        width = h.shape[-1]
        of_branches, of_mlp = torch.split(modulation, 3 * width, dim=-1)
        u = self.norm(r).to(h.dtype)
        h = u + self.fusion(*self._branches(u, of_branches, c))
        shift, scale, gate = of_mlp.chunk(3, dim=-1)
        y = self.mlp(modulate(self.norm_2(h).to(h.dtype), shift, scale))
        return torch.addcmul(h, gate.unsqueeze(1), y), r

    def _branches(self, u: Tensor, modulation: Tensor, c: Tensor | None) -> tuple[Tensor, Tensor]:
        """(B, N, D) → the spatial branch's and the wavelet branch's output, (B, N, D/2) each."""
        x1, x2 = u.chunk(GROUPS, dim=-1)
        v = torch.stack([x1, self.packet(x2)]).permute(1, 2, 0, 3)
        parts = modulation.view(len(u), 1, GROUPS, 3, v.shape[-1])
        shift, scale, gate = parts.unbind(3)
        y = self.mixers(torch.addcmul(shift, v, 1 + scale), self.index, c)
        v = torch.addcmul(v, gate, y)
        return v[:, :, 0], self.packet.inverse(v[:, :, 1])


class SharedAttention(nn.Module):
    """The adaLN-Zero transformer block that DiMSUM applies again after every few blocks.

    Args:
        width: channels D.
        heads: attention heads.
        hidden: channels of the MLP's gate.
        qk_norm: normalise queries and keys.
    """

    def __init__(self, width: int, *, heads: int, hidden: int, qk_norm: bool) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.head_norm = QKNorm(width // heads) if qk_norm else None
        self.mlp = GatedMLP(width, hidden)

    def forward(self, h: Tensor, modulation: Tensor) -> Tensor:
        """Hidden (B, N, D) and modulation (B, 6 D) → hidden."""
        shift, scale, gate, shift_2, scale_2, gate_2 = modulation.unsqueeze(1).chunk(6, dim=-1)
        x = torch.addcmul(shift, plain_norm(h), 1 + scale)
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).unbind(2)
        h = torch.addcmul(h, gate, self.proj(attend(q, k, v, self.head_norm)))
        x = torch.addcmul(shift_2, plain_norm(h), 1 + scale_2)
        return torch.addcmul(h, gate_2, self.mlp(x))


def plain_norm(h: Tensor) -> Tensor:
    """Layer norm without parameters, of the type of `h`."""
    return F.layer_norm(h, h.shape[-1:], eps=1e-6).to(h.dtype)


def residual(h: Tensor) -> Tensor:
    """The start of the residual stream, in float32 or better."""
    return h.to(torch.promote_types(h.dtype, torch.float32))
