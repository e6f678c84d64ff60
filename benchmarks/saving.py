"""What saving every 100 steps and the run's bookkeeping cost, as a share of the training's time.

    OMP_NUM_THREADS=1 python benchmarks/saving.py --out benchmarks/results/saving.json

In a real training every hook of the callbacks that make a run durable and observable (checkpoints,
STATUS.json, metrics.jsonl, the poll of signals, the guards, the progress line) is timed on the
clock; the peer is the rest of the same steps: forward, backward, optimiser, average and data.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from training_step import CROP, DEPTHS, SHARDS, WIDTHS

from lit_restore.callbacks.assemble import Run
from lit_restore.callbacks.checkpoints import Checkpoints
from lit_restore.callbacks.ema import EMA, EMAProfile
from lit_restore.callbacks.guards import Guards
from lit_restore.callbacks.metrics import Metrics
from lit_restore.callbacks.samples import SampleGrid
from lit_restore.callbacks.trace import Trace
from lit_restore.callbacks.validation import Validation
from lit_restore.cli.run_options import WandbOptions
from lit_restore.data import ShardDataModule
from lit_restore.networks import UNet
from lit_restore.parallel.apply import Layout
from lit_restore.training import DenoiserPretraining

EVERY = 100
WARM = 3
HOOKS = ("on_train_batch_start", "on_before_zero_grad", "on_after_backward", "on_train_batch_end")


class Clock(Callback):
    """Seconds of each step from the end of the last to its own, and of the hooks in it."""

    def __init__(self) -> None:
        self.steps: list[float] = []
        self.hooks: list[float] = []
        self._spent = 0.0
        self._marker = 0.0

    def watch(self, callback: Callback) -> None:
        """Time the hooks of a callback."""
        for name in HOOKS:
            if getattr(type(callback), name) is not getattr(Callback, name):
                setattr(callback, name, self._timed(getattr(callback, name)))

    def _timed(self, hook: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(hook)
        def timed(*args: Any, **kwargs: Any) -> Any:
            begun = time.monotonic()
            try:
                return hook(*args, **kwargs)
            finally:
                self._spent += time.monotonic() - begun

        return timed

    def on_train_start(self, *_: Any) -> None:
        """The first step starts here."""
        self._marker, self._spent = time.monotonic(), 0.0

    def on_train_batch_end(self, *_: Any) -> None:
        """A step ended, its hooks included."""
        now = time.monotonic()
        self.steps.append(now - self._marker)
        self.hooks.append(self._spent)
        self._marker, self._spent = now, 0.0


def measure(batch: int, cycles: int, *, behind: bool) -> dict[str, float]:
    """Shares over whole cycles of 100 steps with one save each."""
    steps = WARM + cycles * EVERY + 1  # the last one saves too, and is left out
    data = ShardDataModule(
        train=str(SHARDS), val=None, global_batch=batch, crop=CROP, workers=0,
        total_samples=batch * steps,
    )  # fmt: skip
    module = DenoiserPretraining(UNet(widths=WIDTHS, depths=DEPTHS), sigma_max=0.2)
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        run = Run(
            run_dir=Path(folder), config={}, subcommand="fit",
            ema=EMA({"ema": EMAProfile(half_life=1000)}),
            checkpoints=Checkpoints(every=batch * EVERY, asynchronous=behind),
            validation=Validation(), metrics=Metrics(every=1024), samples=SampleGrid(count=0),
            guards=Guards(), trace=Trace(), wandb=WandbOptions(mode="off"), layout=Layout(),
        )  # fmt: skip
        run.start(module)
        for callback in run.callbacks:
            if callback is not run.ema:
                clock.watch(callback)
        trainer = Trainer(
            accelerator="cpu", devices=1, logger=False, max_epochs=1,
            check_val_every_n_epoch=10**9, num_sanity_val_steps=0, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, inference_mode=False,
            callbacks=[*run.callbacks, clock],
        )  # fmt: skip
        trainer.fit(module, datamodule=data)
        run.close(data)
    taken, hooks = clock.steps[WARM:-1], clock.hooks[WARM:-1]
    rest = sum(taken) - sum(hooks)
    return {
        "step_s": statistics.median(taken),
        "save_s": statistics.mean(sorted(hooks)[-cycles:]),
        "share": sum(hooks) / rest,
        "share_without_saves": statistics.median(hooks) * len(hooks) / rest,
    }


def main() -> None:
    """Print the shares and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cycles", type=int, default=2)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    result = {
        "what": "time in the hooks of bookkeeping, one save in 100 steps included, over the rest "
        "of the same steps (data, forward, backward, optimiser, average); wall clock",
        "steps": args.cycles * EVERY,
        "batch": args.batch,
        "at_once": measure(args.batch, args.cycles, behind=False),
        "behind": measure(args.batch, args.cycles, behind=True),
        "machine": f"{args.threads} thread(s) of a shared {platform.machine()} virtual machine, "
        f"{torch.backends.cpu.get_cpu_capability()}, no GPU",
        "load": os.getloadavg()[0],
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
    }
    text = json.dumps(result, indent=1)
    print(text)
    if args.out is not None:
        args.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
