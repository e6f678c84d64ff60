"""`lit-restore doctor`: what this machine has, and what will be used of it."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform

from lit_restore.errors import ExitCode
from lit_restore.io import fs

_SHM = "/dev/shm"  # noqa: S108  (where data workers hand batches over)
_PACKAGES = (
    "lit-restore", "torch", "torchvision", "lightning", "jsonargparse", "numpy", "pillow",
    "simplejpeg", "safetensors", "webdataset", "wandb", "scikit-image", "pywavelets",
)  # fmt: skip
_EXTRAS = {
    "mamba-ssm": "cuda: parity checks and benchmarks of the selective scan",
    "causal-conv1d": "cuda: the same",
    "lpips": "perceptual: LPIPS in evaluate.py",
    "diffusers": "diffusers: latents of a VAE",
}


def register(parser: argparse.ArgumentParser) -> None:
    """No arguments."""


def run(args: argparse.Namespace) -> int:
    """Print the report."""
    for title, lines in (
        ("machine", _machine()),
        ("accelerator", _accelerator()),
        ("packages", _packages()),
        ("optional packages", _extras()),
        ("what will be used", _choices()),
        ("selective scan", _scan()),
    ):
        print(title)
        for name, value in lines:
            print(f"  {name:<22} {value}")
    return int(ExitCode.OK)


def _machine() -> list[tuple[str, str]]:
    shared = f"{fs.free_bytes(_SHM) / 1e9:.1f} GB free" if fs.is_dir(_SHM) else "absent"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return [
        ("system", f"{platform.system()} {platform.machine()}"),
        ("python", platform.python_version()),
        ("processor cores", str(cores)),
        ("free on this disk", f"{fs.free_bytes('.') / 1e9:.1f} GB"),
        ("shared memory", shared),
    ]


def _accelerator() -> list[tuple[str, str]]:
    import torch

    from lit_restore.parallel.peaks import peak_flops

    if not torch.cuda.is_available():
        return [("CUDA", "none; everything runs on the CPU")]
    rows = []
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        memory = f"{device.total_memory / 2**30:.0f} GiB"
        peak = peak_flops(device.name, "bf16") or peak_flops(device.name, "fp16")
        speed = f"{peak / 1e12:.0f} TFLOP/s at 16 bits" if peak else "peak not known: no MFU"
        about = f"{device.name}, {memory}, sm_{device.major}{device.minor}, {speed}"
        rows.append((f"cuda:{index}", about))
    bf16 = "yes" if torch.cuda.is_bf16_supported() else "no"
    return [*rows, ("bf16", bf16), ("CUDA of torch", str(torch.version.cuda))]


def _packages() -> list[tuple[str, str]]:
    return [(name, _version(name) or "MISSING: pip install " + name) for name in _PACKAGES]


def _extras() -> list[tuple[str, str]]:
    return [(name, f"{_version(name) or 'not installed'} ({use})") for name, use in _EXTRAS.items()]


def _choices() -> list[tuple[str, str]]:
    import torch

    from lit_restore.data.decode import decoder_name

    cuda = torch.cuda.is_available()
    key = bool(os.environ.get("WANDB_API_KEY")) or os.path.exists(os.path.expanduser("~/.netrc"))
    return [
        ("image decoder", decoder_name().split("+")[0]),
        ("trainer.precision", "choose " + ("bf16-mixed" if cuda else "32")),
        ("threads of torch", str(torch.get_num_threads())),
        ("W&B", "online if it finds your account" if key else "offline (no account found)"),
    ]  # fmt: skip


def _scan() -> list[tuple[str, str]]:
    import torch

    from lit_restore.ops.selective_scan.dispatch import VARIABLE, report
    from lit_restore.ops.selective_scan.op import PACKAGE

    device = "cuda" if torch.cuda.is_available() else "cpu"
    asked = os.environ.get(VARIABLE)
    rows = [(VARIABLE, f"asks for {asked}")] if asked else []
    return [*rows, *report(PACKAGE, device)]


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
