"""DP-IR in small: a denoiser, a restoration network and a fusion over them, and their recipes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import yaml
from support_runs import merged

from lit_restore.networks import EDSR, FusionNet, Network, UNet
from lit_restore.weights import load_exported, save_exported
from lit_restore.weights.restorers import weights_sha256

SCALE = 2
DOWNSCALE: dict[str, Any] = {"class_path": "Downscale", "init_args": {"scale": SCALE}}
"""As a recipe names it."""
FUSION: dict[str, Any] = {"width": 4, "num_convs": 2, "growth": 4, "time_dim": 8, "time_hidden": 8,
                          "decoder_blocks": 1}  # fmt: skip
EDSR_OPTIONS: dict[str, Any] = {"width": 4, "depth": 1}

RECIPE: dict[str, Any] = {
    "total_samples": 32,
    "data": {
        "global_batch": 4, "crop": 16, "val_crop": 32, "workers": 0, "shuffle_window": 2,
        "degradation": DOWNSCALE,
    },
    "ema": {"profiles": {"ema": {"half_life": 64}}},
    "checkpoint": {"every": 8},
    "validation": {"every": 16},
    "metrics": {"every": 8},
    "samples": {"every": 16, "count": 1, "size": 32},
    "trace": {"enabled": True},
    "wandb": {"mode": "off"},
    "trainer": {"accelerator": "cpu", "devices": 1},
}  # fmt: skip


def moved(net: Network, seed: int = 0, by: float = 0.02) -> Network:
    """`net` with its weights a little off what they start as."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(parameter + by * torch.randn(parameter.shape, generator=generator))
    return net


def save_denoiser(path: Path, seed: int = 0) -> Path:
    """A tiny denoiser, exported."""
    torch.manual_seed(seed)
    save_exported(path, moved(UNet(widths=[4], depths=[1]), seed), info={"task": "denoiser"})
    return path


def save_restorer(
    path: Path, seed: int = 0, scale: int = SCALE, degradation: dict[str, Any] | None = DOWNSCALE
) -> Path:
    """A tiny restoration network, exported with what its training's data were degraded by."""
    torch.manual_seed(seed)
    net = moved(EDSR(**EDSR_OPTIONS, scale=scale), seed)
    info = {"task": "regression", "config": {"data": {"degradation": degradation}}}
    save_exported(path, net, info=info)
    return path


def save_fusion(path: Path, seed: int = 0, net: Network | None = None, **info: Any) -> Path:
    """A tiny fusion network, exported; over `denoiser` and `restorer` beside it, as recorded."""
    torch.manual_seed(seed)
    net = moved(FusionNet(**FUSION), seed) if net is None else net
    names = {name: path.with_name(f"{name}.safetensors") for name in ("denoiser", "restorer")}
    there = {name: place for name, place in names.items() if place.exists()}
    told: dict[str, Any] = {
        "task": "fusion",
        "profile": "ema",
        "config": {
            "model": {name: str(place) for name, place in names.items()},
            "data": {"degradation": DOWNSCALE},
        },
        "frozen": {name: digest(place) for name, place in there.items()},
    }
    save_exported(path, net, info=merged(told, info))
    return path


def save_all(folder: Path) -> Path:
    """The three networks of a restoration; the path of the fusion."""
    folder.mkdir(parents=True, exist_ok=True)
    save_denoiser(folder / "denoiser.safetensors")
    save_restorer(folder / "restorer.safetensors")
    return save_fusion(folder / "fusion.safetensors")


def digest(path: Path) -> str:
    """The sha256 of an exported network's weights."""
    return weights_sha256(load_exported(path).state_dict())


def write_recipe(folder: Path, task: str, shards: Path, model: dict[str, Any], **over: Any) -> Path:
    """A recipe file of `task: regression` or `fusion`; `over` replaces parts of `RECIPE`."""
    fusion = task == "fusion"
    kind, options = ("FusionNet", FUSION) if fusion else ("EDSR", {**EDSR_OPTIONS, "scale": SCALE})
    base = {"task": task, "data": {"train": str(shards)}}
    tree = merged(merged(RECIPE, base), {"model": model})
    tree["model"] = {"net": {"class_path": kind, "init_args": options}, **tree["model"]}
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(merged(tree, over)))
    return path
