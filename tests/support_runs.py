"""Small real trainings through `train.py`'s own command, and what they leave behind."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import skimage.data  # noqa: F401  # the same
import torch
import yaml
from support_fork import run_ranks
from torch import Tensor

import lit_restore.cli.restore_cli  # noqa: F401  # once here, not in every forked child
from lit_restore.io import failpoints
from lit_restore.weights.checkpoint import read_checkpoint

RECIPE: dict[str, Any] = {
    "task": "denoiser",
    "total_samples": 96,
    "data": {
        "global_batch": 8,
        "crop": 16,
        "val_crop": 32,
        "workers": 0,
        "shuffle_window": 2,
    },
    "model": {
        "net": {"class_path": "UNet", "init_args": {"widths": [8, 8], "depths": [1, 1]}},
        "sigma_max": 0.2,
        "optimizer": {"name": "adamw", "lr": 1e-3},
        "schedule": {"name": "cosine", "warmup": 16},
    },
    "ema": {"profiles": {"ema": {"half_life": 64}, "wide": {"sigma_rel": 0.1}}},
    "checkpoint": {"every": 24},
    "validation": {"every": 48},
    "metrics": {"every": 16},
    "samples": {"every": 48, "count": 1, "size": 32},
    "trace": {"enabled": True},
    "wandb": {"mode": "off"},
    "trainer": {"accelerator": "cpu", "devices": 1},
}


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `over` laid on it, group by group."""
    tree = dict(base)
    for key, value in over.items():
        old = tree.get(key)
        both = isinstance(old, dict) and isinstance(value, dict)
        tree[key] = merged(old, value) if both and key != "profiles" else value
    return tree


def write_recipe(folder: Path, shards: Path, **over: Any) -> Path:
    """A recipe file for the shards in a folder; `over` replaces parts of `RECIPE`."""
    tree = merged(merged(RECIPE, {"data": {"train": str(shards)}}), over)
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def train(
    recipe: Path,
    run_dir: Path,
    *options: str,
    world: int = 1,
    strategy: str = "ddp",
    failpoint: str = "",
    output: Path | None = None,
    seconds: float = 120,
) -> list[int]:
    """`train.py fit` in forked processes; the exit code of each rank."""
    argv = ["fit", "-c", str(recipe), "--run_dir", str(run_dir), *options]
    if world > 1:
        argv += ["--trainer.strategy", strategy, "--trainer.devices", str(world)]

    def one(rank: int) -> int:
        from lit_restore.cli.train import main

        with failpoints.armed(failpoint):
            return main(argv)

    return run_ranks(one, world, output=output, seconds=seconds)


def last(run_dir: Path) -> Path:
    """The newest checkpoint folder."""
    return max((run_dir / "checkpoints").glob("step-*"))


def tensors_of(run_dir: Path) -> dict[str, Tensor]:
    """Every tensor of the newest checkpoint."""
    checkpoint = read_checkpoint(last(run_dir))
    flat = {f"net/{k}": v for k, v in checkpoint.network.items()}
    flat |= {f"optimizer/{k}": v for k, v in checkpoint.optimizer.items()}
    for profile, state in checkpoint.averages.items():
        flat |= {f"{profile}/{k}": v for k, v in state.items()}
    return flat


def rows(path: Path) -> list[dict[str, Any]]:
    """The lines of a JSON-lines file, without what depends on the clock."""
    from lit_restore.callbacks.records import TIMING

    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in TIMING} for line in lines]


def assert_same_run(one: Path, other: Path) -> None:
    """Parameters, averages, optimiser, sample keys and records are bit-equal."""
    a, b = tensors_of(one), tensors_of(other)
    assert a.keys() == b.keys()
    different = [name for name in a if not torch.equal(a[name], b[name])]
    assert not different, different[:5]
    assert rows(one / "trace.jsonl") == rows(other / "trace.jsonl")
    assert rows(one / "metrics.jsonl") == rows(other / "metrics.jsonl")


def largest_difference(one: Path, other: Path) -> float:
    """Largest relative difference of a tensor's norm-wise distance."""
    a, b = tensors_of(one), tensors_of(other)
    assert a.keys() == b.keys()
    worst = 0.0
    for name in a:
        distance = (a[name].double() - b[name].double()).norm()
        worst = max(worst, float(distance / a[name].double().norm().clamp_min(1e-30)))
    return worst
