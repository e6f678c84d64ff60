"""Overhead of a training step over a bare PyTorch loop, paired and interleaved in one process.

Both do the same: crops with noise drawn per sample from its own stream, forward, loss, backward,
clipping, AdamW, an average of the weights. A step is made long enough (at least 200 ms) that the
machine's noise does not swamp the difference.

    python benchmarks/training_step.py [--pairs 20] [--out benchmarks/results/training_step.json]
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer

from lit_restore.callbacks.assemble import Run
from lit_restore.callbacks.checkpoints import Checkpoints
from lit_restore.callbacks.ema import EMA, EMAProfile, make_twin
from lit_restore.callbacks.guards import Guards
from lit_restore.callbacks.metrics import Metrics
from lit_restore.callbacks.samples import SampleGrid
from lit_restore.callbacks.trace import Trace
from lit_restore.callbacks.validation import Validation
from lit_restore.cli.run_options import WandbOptions
from lit_restore.data import ShardDataModule
from lit_restore.data.locate import open_source
from lit_restore.data.order import Order
from lit_restore.data.samples import Augmentation, TrainingSamples
from lit_restore.networks import UNet
from lit_restore.parallel.apply import Layout
from lit_restore.training import DenoiserPretraining

SHARDS = Path(__file__).parents[1] / "data" / "fixture"
CROP, WIDTHS, DEPTHS = 64, (32, 64), (4, 2)


def bare_steps(batch: int) -> Iterator[None]:
    """The loop somebody would write by hand; one step a `next`."""
    net = UNet(widths=WIDTHS, depths=DEPTHS).to(memory_format=torch.channels_last)
    twin = make_twin(net)
    averages, weights = list(twin.parameters()), list(net.parameters())
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
    source = open_source(str(SHARDS), key="data")
    order = Order(source.counts, seed=0, window=16)
    augmentation = Augmentation(crop=CROP, flip=True, rotate=True)
    samples = TrainingSamples(source, order, augmentation=augmentation, seed=0)
    position = 0
    while True:
        clean = torch.stack(
            [torch.from_numpy(samples[position + k].image).permute(2, 0, 1) for k in range(batch)]  # type: ignore[union-attr]
        )
        clean = clean.contiguous(memory_format=torch.channels_last).float().div_(255)
        noises, sigmas = [], []
        for k in range(batch):
            generator = torch.Generator().manual_seed(position + k)
            sigmas.append(0.2 * torch.rand((), generator=generator))
            noises.append(torch.randn(clean.shape[1:], generator=generator))
        sigma = torch.stack(sigmas)
        noisy = clean + sigma.view(-1, 1, 1, 1) * torch.stack(noises)
        loss = (net(noisy, sigma) - clean).square().mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(averages, weights, 1e-3)
        position += batch
        yield


class Interleave(Callback):
    """After each step of the trainer, one of the bare loop; measures both.

    Args:
        bare: one step a `next`.
        warm: steps that are not counted.
    """

    def __init__(self, bare: Iterator[None], warm: int) -> None:
        self.bare, self.warm = bare, warm
        self.ours: list[float] = []
        self.theirs: list[float] = []
        self._marker = 0.0

    def on_train_start(self, *_: Any) -> None:
        """The first step, its data included, starts here."""
        self._marker = time.process_time()

    def on_train_batch_end(self, *_: Any) -> None:
        """A step of ours ended; the next one starts when the bare one is done."""
        ended = time.process_time()
        next(self.bare)
        after = time.process_time()
        if self.warm > 0:
            self.warm -= 1
        else:
            self.ours.append(ended - self._marker)
            self.theirs.append(after - ended)
        self._marker = after


def measure(batch: int, pairs: int, warm: int = 3) -> tuple[list[float], list[float]]:
    """CPU seconds of `pairs` steps of each, alternating."""
    data = ShardDataModule(
        train=str(SHARDS), val=None, global_batch=batch, crop=CROP, workers=0,
        total_samples=batch * (warm + pairs),
    )  # fmt: skip
    module = DenoiserPretraining(UNet(widths=WIDTHS, depths=DEPTHS), sigma_max=0.2)
    interleave = Interleave(bare_steps(batch), warm)
    with tempfile.TemporaryDirectory() as folder:
        run = Run(
            run_dir=Path(folder), config={}, subcommand="fit",
            ema=EMA({"ema": EMAProfile(half_life=1000)}), checkpoints=Checkpoints(every=0),
            validation=Validation(), metrics=Metrics(every=10**6), samples=SampleGrid(count=0),
            guards=Guards(), trace=Trace(), wandb=WandbOptions(mode="off"),
            layout=Layout(),
        )  # fmt: skip
        run.start(module)
        trainer = Trainer(
            accelerator="cpu", devices=1, logger=False, max_epochs=1,
            check_val_every_n_epoch=10**9, num_sanity_val_steps=0, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False,
            callbacks=[*run.callbacks, interleave],
        )  # fmt: skip
        trainer.fit(module, datamodule=data)
        run.close(data)
    # The last step also writes the final checkpoint, which is not a step's work.
    return interleave.ours[:-1], interleave.theirs[:-1]


def main() -> None:
    """Print the ratio and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    ours, theirs = measure(args.batch, args.pairs)
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    result = {
        "what": "a training step of ours over the same step of a bare loop, process CPU seconds",
        "pairs": args.pairs,
        "batch": args.batch,
        "bare_step_s": statistics.median(theirs),
        "ours_step_s": statistics.median(ours),
        "ratio_median": statistics.median(ratios),
        "ratio_of_sums": sum(ours) / sum(theirs),
        "machine": f"{args.threads} thread(s) of a shared {platform.machine()} virtual machine, "
        f"{torch.backends.cpu.get_cpu_capability()}, no GPU",
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
    }
    text = json.dumps(result, indent=1)
    print(text)
    if args.out is not None:
        args.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
