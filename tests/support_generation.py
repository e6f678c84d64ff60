"""Small trainings of the task `generation`: flat colours in two classes, tiny backbones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import yaml
from conftest import encoded, write_tar
from support_runs import merged

COLOURS = ((210, 60, 40), (30, 90, 220))
"""Red-ish and blue-ish: the mean colour of class 0 and of class 1."""

DIMSUM: dict[str, Any] = {
    "channels": 3, "size": 8, "patch": 2, "width": 32, "depth": 2, "classes": 2, "state": 2,
    "attention_every": 2, "attention_heads": 2, "fusion_heads": 2,
}  # fmt: skip
DIT: dict[str, Any] = {
    "channels": 3, "size": 8, "patch": 2, "width": 32, "depth": 2, "heads": 2, "classes": 2,
}  # fmt: skip

RECIPE: dict[str, Any] = {
    "task": "generation",
    "total_samples": 64,
    "data": {
        "val": None, "global_batch": 8, "crop": 8, "val_crop": 8, "rotate": False, "workers": 0,
        "shuffle_window": 2,
    },
    "model": {
        "net": {"class_path": "DiT", "init_args": DIT},
        "sampler": {"solver": "euler", "nfe": 3},
        "optimizer": {"name": "adamw", "lr": 1e-3},
    },
    "ema": {"profiles": {"ema": {"half_life": 64}}},
    "checkpoint": {"every": 24},
    "validation": {"every": 0},
    "metrics": {"every": 8},
    "samples": {"every": 0, "count": 0},
    "trace": {"enabled": True},
    "wandb": {"mode": "off"},
    "trainer": {"accelerator": "cpu", "devices": 1},
}  # fmt: skip


def flat(number: int, side: int = 8) -> np.ndarray:
    """Picture `number` of class `number % 2`: its colour, a little lighter or darker."""
    shade = 1 + 0.1 * np.sin(number)
    colour = np.clip(np.array(COLOURS[number % 2]) * shade, 0, 255)
    return np.full((side, side, 3), colour, dtype=np.uint8)


def write_colours(
    folder: Path, count: int = 24, *, side: int = 8, labels: bool = True, shards: int = 2
) -> Path:
    """Shards of flat pictures with labels 0 and 1 in turn."""
    folder.mkdir(parents=True, exist_ok=True)
    for shard in range(shards):
        members = []
        for number in range(shard, count, shards):
            members.append((f"{number:05d}.png", encoded(flat(number, side))))
            if labels:
                members.append((f"{number:05d}.cls", str(number % 2).encode()))
        write_tar(folder / f"train-{shard}.tar", members)
    return folder


def write_recipe(folder: Path, shards: Path, net: dict[str, Any] = DIT, **over: Any) -> Path:
    """A recipe file for the shards in a folder; `over` replaces parts of `RECIPE`."""
    kind = "DiMSUM" if "state" in net else "DiT"
    base = merged(RECIPE, {"data": {"train": str(shards)}})
    base["model"] = {**base["model"], "net": {"class_path": kind, "init_args": net}}
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(merged(base, over)))
    return path
