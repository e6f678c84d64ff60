"""DiMSUM on a CPU: a block against a straightforward one, a training step against the plain loop.

The straightforward block computes the same from the same weights, as one would write it down from
the paper: tokens are gathered into each branch's order and scattered back, the branches run one
after the other, each with projections, convolution, modulation and attention of its own, the mixer
is channel-major as Mamba's, the wavelet transform is a convolution for each band. It has the same
scan kernel. The training step is that of the 32-pixel preset, with the compiled scan, with the
plain PyTorch loop in its place (all else equal), and with the scan left out: what no scan could be
faster than.

    python benchmarks/dimsum_block.py [--pairs 15] [--steps 5] [--out FILE]
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lit_restore.networks.dimsum import DiMSUM, mixer, preset
from lit_restore.networks.dimsum.block import Block
from lit_restore.ops import selective_scan
from lit_restore.ops.scan_orders import inverse_order
from lit_restore.ops.selective_scan.upstream import selective_scan_fn

HAAR = ((1, 1, 1, 1), (1, 1, -1, -1), (1, -1, 1, -1), (1, -1, -1, 1))


SHAPES = ((64, 2, 32, 8), (128, 4, 32, 8), (160, 5, 16, 64), (256, 4, 32, 8), (384, 3, 32, 8),
          (1024, 8, 32, 1))  # fmt: skip
"""Width, fusion heads, side of the input and batch of the blocks measured."""


class PlainMixer(nn.Module):
    """One Mamba mixer on tokens in scan order, channel-major inside, as Mamba's own module is.

    Its arguments change layout for each product and back, and B and C are copied for the scan.
    """

    def __init__(self, block: Block, branch: int) -> None:
        super().__init__()
        both = block.mixers

        def mine(stacked: Tensor) -> Tensor:
            return stacked.detach().chunk(2)[branch].clone()

        self.rank, self.state = both.rank, both.state
        for name in ("in_proj", "x_proj", "dt_proj", "out_proj"):
            self.register_buffer(name, mine(getattr(both, name).weight))
        for name in ("conv_weight", "conv_bias", "dt_bias", "A_log", "D"):
            self.register_buffer(name, mine(getattr(both, name)))

    def forward(self, v: Tensor) -> Tensor:
        """(B, N, d) → the same shape."""
        batch, count, _ = v.shape
        xz = (self.in_proj @ v.flatten(0, 1).t()).unflatten(1, (batch, count)).transpose(0, 1)
        x, z = xz.chunk(2, dim=1)
        taps, channels = self.conv_weight.shape[1], x.shape[1]
        x = F.conv1d(
            x, self.conv_weight[:, None], self.conv_bias, padding=taps - 1, groups=channels
        )
        x = F.silu(x[..., :count])
        rows = x.transpose(1, 2).flatten(0, 1)
        dt, b, c = F.linear(rows, self.x_proj).split([self.rank, self.state, self.state], dim=-1)
        dt = (self.dt_proj @ dt.t()).unflatten(1, (batch, count)).transpose(0, 1)
        b, c = (t.unflatten(0, (batch, count)).transpose(1, 2).contiguous() for t in (b, c))
        y = selective_scan_fn(
            x, dt, -self.A_log.exp(), b, c, self.D, z, self.dt_bias, delta_softplus=True
        )
        return F.linear(y.transpose(1, 2), self.out_proj)


class PlainBlock(nn.Module):
    """The same block, one thing after the other.

    Args:
        block: whose weights and orders it takes.
        modulation: (6 D, D) and (6 D), the block's rows of the network's modulation.
    """

    def __init__(self, block: Block, modulation: tuple[Tensor, Tensor]) -> None:
        super().__init__()
        self.block = block
        self.mixers = nn.ModuleList(PlainMixer(block, branch) for branch in range(2))
        width = block.norm.weight.numel()
        sizes = [3 * width // 2, 3 * width // 2, 3 * width]
        self.weights = [w.clone() for w in modulation[0].split(sizes)]
        self.biases = [b.clone() for b in modulation[1].split(sizes)]
        self.heads = block.fusion.heads
        self.qkv = [w.detach().clone() for w in block.fusion.qkv.weight.chunk(2)]
        assert block.fusion.qkv.bias is not None
        self.qkv_bias = [b.detach().clone() for b in block.fusion.qkv.bias.chunk(2)]

    def forward(self, h: Tensor, r: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """Hidden and residual (B, N, D), embedding (B, D) → the same after the block."""
        r = r + h
        u = self.block.norm(r)
        x1, x2 = u.chunk(2, dim=-1)
        spatial = self._branch(x1, 0, c)
        wavelet = self._inverse(self._branch(self._wavelet(x2), 1, c))
        q1, k1, v1 = self._heads(spatial, 0)
        q2, k2, v2 = self._heads(wavelet, 1)
        a = F.scaled_dot_product_attention(q1, k2, v2).transpose(1, 2).flatten(2)
        b = F.scaled_dot_product_attention(q2, k1, v1).transpose(1, 2).flatten(2)
        h = u + self.block.fusion.proj(torch.cat([a, b], dim=-1))
        shift, scale, gate = self._modulation(c, 2)
        y = self.block.mlp(self.block.norm_2(h) * (1 + scale) + shift)
        return h + gate * y, r

    def _modulation(self, c: Tensor, part: int) -> tuple[Tensor, ...]:
        return F.linear(F.silu(c), self.weights[part], self.biases[part])[:, None].chunk(3, dim=-1)

    def _branch(self, x: Tensor, branch: int, c: Tensor) -> Tensor:
        order = self.block.index[branch].long()
        shift, scale, gate = self._modulation(c, branch)
        v = x[:, order]
        v = v + gate * self.mixers[branch](v * (1 + scale) + shift)
        return v[:, inverse_order(order)]

    def _heads(self, x: Tensor, branch: int) -> tuple[Tensor, ...]:
        qkv = F.linear(x, self.qkv[branch], self.qkv_bias[branch])
        shaped = qkv.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return shaped[0], shaped[1], shaped[2]

    def _wavelet(self, x: Tensor) -> Tensor:
        batch, count, channels = x.shape
        side = round(count**0.5)
        y = x.transpose(1, 2).reshape(batch, channels, side, side)
        y = torch.cat([band(part) for part in band(y).chunk(4, dim=1)], dim=1) / 4
        y = y.view(batch, channels, 4, 4, side // 4, side // 4)
        return y.permute(0, 4, 2, 5, 3, 1).reshape(batch, count, channels)

    def _inverse(self, x: Tensor) -> Tensor:
        batch, count, channels = x.shape
        side = round(count**0.5)
        y = x.view(batch, side // 4, 4, side // 4, 4, channels).permute(0, 5, 2, 4, 1, 3)
        y = y.reshape(batch, 16 * channels, side // 4, side // 4) * 4
        y = unband(torch.cat([unband(part) for part in y.chunk(4, dim=1)], dim=1))
        return y.flatten(2).transpose(1, 2)


def filters(like: Tensor, channels: int) -> list[Tensor]:
    """Haar's four filters, one for each channel."""
    return [
        (torch.tensor(values, dtype=like.dtype).view(1, 1, 2, 2) / 2).expand(channels, 1, 2, 2)
        for values in HAAR
    ]


def band(x: Tensor) -> Tensor:
    """One level of the transform: (B, C, H, W) → (B, 4 C, H/2, W/2)."""
    kernels = filters(x, x.shape[1])
    return torch.cat([F.conv2d(x, k, stride=2, groups=x.shape[1]) for k in kernels], dim=1)


def unband(x: Tensor) -> Tensor:
    """And back."""
    parts = x.chunk(4, dim=1)
    kernels = filters(x, parts[0].shape[1])
    backs = [
        F.conv_transpose2d(part, k, stride=2, groups=part.shape[1])
        for part, k in zip(parts, kernels, strict=True)
    ]
    return torch.stack(backs).sum(0)


def pairs(one: Callable[[], Any], other: Callable[[], Any], count: int) -> tuple[list[float], ...]:
    """Seconds of each, alternating."""
    for warm in (one, other):
        warm()
    taken: tuple[list[float], list[float]] = ([], [])
    for _ in range(count):
        for run, list_ in zip((one, other), taken, strict=True):
            began = time.perf_counter()
            run()
            list_.append(time.perf_counter() - began)
    return taken


def measure_block(width: int, heads: int, size: int, batch: int, count: int) -> dict[str, Any]:
    """Forward of blocks 0 … 3, whose orders differ."""
    torch.manual_seed(0)
    net = DiMSUM(
        channels=3, size=size, patch=2, width=width, depth=4, classes=0, attention_every=0,
        fusion_heads=heads,
    ).eval()  # fmt: skip
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.02 * torch.randn_like(p))
    rows = [t.split(net.parts)[:4] for t in (net.modulation.weight, net.modulation.bias)]
    plain = [PlainBlock(b, (w, s)) for b, w, s in zip(net.trunk, *rows, strict=True)]
    tokens = (size // 2) ** 2
    h, r = (torch.randn(batch, tokens, width) for _ in range(2))
    c = torch.randn(batch, width)
    stacked = torch.cat(rows[0]).detach(), torch.cat(rows[1]).detach()

    @torch.no_grad()
    def ours() -> Tensor:
        mods = F.linear(F.silu(c), *stacked)
        x, s = h, r
        for block, part in zip(net.trunk, mods.split(net.parts[:4], dim=-1), strict=True):
            x, s = block(x, s, part, c)
        return x

    @torch.no_grad()
    def theirs() -> Tensor:
        x, s = h, r
        for block in plain:
            x, s = block(x, s, c)
        return x

    error = float((ours() - theirs()).norm() / theirs().norm())
    assert error < 1e-5, error
    mine, peer = pairs(ours, theirs, count)
    return {
        "what": f"forward of 4 blocks, width {width}, {tokens} tokens, batch {batch}, float32",
        "relative_difference": error,
        **summary(mine, peer, "block", "plain_block"),
    }


def measure_step(batch: int, count: int) -> dict[str, Any]:
    """Forward, backward and AdamW of the 32-pixel preset, compiled scan against the plain loop."""
    torch.manual_seed(0)
    net = preset("pixels-32")
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4)
    x, t = torch.randn(batch, 3, 32, 32), torch.rand(batch)
    y = torch.arange(batch) % 10

    def step(scan: Callable[..., Tensor]) -> None:
        with mock.patch.object(mixer, "selective_scan", scan):
            net(x, t, y).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    compiled, loop = (partial(selective_scan, backend=name) for name in ("cpu", "reference"))
    mine, plain = pairs(lambda: step(compiled), lambda: step(loop), count)
    again, none = pairs(lambda: step(compiled), lambda: step(left_out), count)
    return {
        "what": f"training step of pixels-32 (21 M parameters), batch {batch}, float32",
        **summary(mine, plain, "compiled_scan", "plain_loop"),
        "over_a_step_without_scan": statistics.median(
            a / b for a, b in zip(again, none, strict=True)
        ),
        "over_a_step_without_scan_minima": min(again) / min(none),
    }


def left_out(
    u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, *rest: Any, **more: Any
) -> Tensor:
    """The gate alone; everything gets a gradient, so that nothing else is left out."""
    z = rest[1] if len(rest) > 1 else more["z"]
    return u * F.silu(z) + 0 * (dt.mean() + A.sum() + B.sum() + C.sum())


def summary(mine: list[float], peer: list[float], name: str, other: str) -> dict[str, Any]:
    """Medians, and the quartiles of the paired ratios."""
    ratios = [b / a for a, b in zip(mine, peer, strict=True)]
    low, _, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else 3 * ratios
    return {
        f"{name}_s": statistics.median(mine),
        f"{other}_s": statistics.median(peer),
        "speedup": statistics.median(ratios),
        "speedup_of_minima": min(peer) / min(mine),
        "quartiles": [low, high],
        "pairs": len(ratios),
    }


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--machine", default="", help="the machine in words")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    result = {
        "machine": args.machine or f"{platform.machine()}, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "blocks": [measure_block(*shape, args.pairs) for shape in SHAPES],
        "step": measure_step(args.batch, args.steps),
    }
    text = json.dumps(result, indent=1)
    print(text)
    if args.out:
        args.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
