"""A fusion training step with the restoration network's outputs in the shards, and without.

The step (loss, backward, optimiser) of configs/dpir/sr_x4_cpu.yaml on batches in memory, in turns:
with `restored` in the batch, and with the restoration network called at every step. Three such
networks: the recipe's own small one, EDSR-baseline (1.5 M parameters), and SwinIR for classical
super-resolution (11.9 M). What a cache saves is what the network costs beside the denoiser (one
forward pass) and the fusion network (forward and backward).

    python benchmarks/fusion_cache.py [--pairs 9] [--threads 1] [--out FILE]
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from lit_restore.data.batch import Batch
from lit_restore.networks import EDSR, FusionNet, UNet
from lit_restore.networks.restoration import RestorationNetwork
from lit_restore.training import FusionTraining
from lit_restore.weights import save_exported

BATCH, CROP, SCALE = 8, 64, 4


def swinir() -> nn.Module:
    """Its published size for classical super-resolution, random weights."""
    from spandrel.architectures.SwinIR import SwinIR

    return SwinIR(
        upscale=SCALE, in_chans=3, img_size=48, window_size=8, img_range=1.0, depths=[6] * 6,
        embed_dim=180, num_heads=[6] * 6, mlp_ratio=2, upsampler="pixelshuffle",
        resi_connection="1conv",
    )  # fmt: skip


def training() -> FusionTraining:
    """The recipe's networks, random weights."""
    net = FusionNet(width=32, growth=16, num_convs=4, unshuffle=2, residual="average")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "denoiser.safetensors"
        save_exported(path, UNet(widths=(32, 64), depths=(4, 2)), info={"task": "denoiser"})
        return FusionTraining(net, denoiser=str(path), loss="psnr")


def batches() -> tuple[Batch, Batch]:
    """One with the restored images, one without."""
    generator = torch.Generator().manual_seed(0)

    def images(side: int) -> Tensor:
        return torch.rand(BATCH, 3, side, side, generator=generator)

    common: dict[str, Any] = {
        "image": images(CROP), "degraded": images(CROP // SCALE), "key": [""] * BATCH,
        "position": torch.arange(BATCH),
    }  # fmt: skip
    return cast("Batch", {**common, "restored": images(CROP)}), cast("Batch", common)


def seconds(module: FusionTraining, optimizer: torch.optim.Optimizer, batch: Batch) -> float:
    start = time.perf_counter()
    module.losses(batch)["loss"].backward()
    optimizer.step()
    optimizer.zero_grad()
    return time.perf_counter() - start


def main() -> None:
    """Print the figures and write the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    module = training().train()
    optimizer = torch.optim.AdamW(module.net.parameters())
    cached, plain = batches()
    restorers: dict[str, nn.Module] = {
        "EDSR of the recipe": EDSR(3, 32, 12, SCALE, upsampler="pixelshuffledirect"),
        "EDSR-baseline": EDSR(scale=SCALE),
        "SwinIR classical": swinir(),
    }
    rows = []
    for name, net in restorers.items():
        module.restorer = RestorationNetwork(net, name=name, scale=SCALE, multiple=1)
        if name.startswith("SwinIR"):
            module.restorer = RestorationNetwork(net, name=name, scale=SCALE, multiple=8)
        for batch in (cached, plain):
            seconds(module, optimizer, batch)
        with_cache, without = zip(
            *(
                (seconds(module, optimizer, cached), seconds(module, optimizer, plain))
                for _ in range(args.pairs)
            ),
            strict=True,
        )
        rows.append(
            {
                "restorer": name,
                "parameters": sum(p.numel() for p in net.parameters()),
                "cached_s": statistics.median(with_cache),
                "called_s": statistics.median(without),
                "speedup": statistics.median(
                    b / a for a, b in zip(with_cache, without, strict=True)
                ),
                "speedup_of_minima": min(without) / min(with_cache),
            }
        )
        print(rows[-1])
    result = {
        "what": f"fusion training step, batch {BATCH} of {CROP}x{CROP}, float32",
        "pairs": args.pairs,
        "rows": rows,
        "machine": f"{args.threads} thread(s) of a shared {platform.machine()} virtual machine, "
        f"{torch.backends.cpu.get_cpu_capability()}, no GPU",
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
    }
    if args.out is not None:
        args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
