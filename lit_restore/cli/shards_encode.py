"""`lit-restore shards encode`: pictures → latents of an autoencoder, once, before training."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from lit_restore.data.latents import COMPUTE, STORED
from lit_restore.data.manifest import MANIFEST, read_manifest
from lit_restore.errors import ExitCode, UserError, require_at_least
from lit_restore.io import fs
from lit_restore.io.wording import human_size

if TYPE_CHECKING:
    from lit_restore.data.reader import Source

_MOST_READERS = 8
_EXPLANATION = """\
Each picture's middle square is scaled to --size (as ADM does for ImageNet) and encoded as it is
and mirrored; mean and standard deviation of the latent are stored, so that training draws a new
latent each time. The new shards have the names, keys and labels of the old. Interrupted, run the
same command again: it goes on, and the bytes are the same. They are the same for any number of
processes too, on processors or GPUs of one kind and one version of PyTorch."""


def register(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.description = "Encode the pictures of shards with a VAE, for training on latents."
    parser.epilog = _EXPLANATION
    add = parser.add_argument
    add("source", metavar="SHARDS", help="what data.train takes: a folder, shard, pattern, URL")
    add(
        "--vae",
        required=True,
        metavar="FOLDER",
        help="config.json and .safetensors of a diffusers AutoencoderKL",
    )
    add("--out", type=Path, required=True, help="folder of the shards; new, or an interrupted one")
    add("--size", type=int, default=256, help="side of the squares, pixels (default 256)")
    add("--batch", type=int, default=32, help="pictures encoded at once (default 32)")
    add("--dtype", choices=STORED, default="float16", help="as stored (default float16)")
    add("--compute", choices=COMPUTE, default="float32", help="as computed (default float32)")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto")
    add(
        "--flip",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="also encode mirror images (default yes)",
    )
    add(
        "--workers",
        type=int,
        help="processes (default: one a GPU; without a GPU one a core, each of which takes 6 GB "
        "with Stable Diffusion's VAE and the other defaults)",
    )


def run(args: argparse.Namespace) -> int:
    """Encode, and say what there is."""
    from lit_restore.data.latent_shards import LatentOptions, encode_shards
    from lit_restore.data.locate import open_source

    options = LatentOptions(
        size=args.size,
        batch=args.batch,
        dtype=args.dtype,
        compute=args.compute,
        mirrored=args.flip,
    )
    devices = devices_of(args.device, args.workers)
    source = open_source(args.source, key="SHARDS")
    manifest = encode_shards(
        source,
        args.vae,
        args.out,
        options=options,
        devices=devices,
        classes=classes_of(args.source, source),
        readers=max(1, min(_MOST_READERS, _cores() // len(devices))),
    )
    size = human_size(sum(shard.size for shard in manifest.shards))
    shards = f"{len(manifest.shards)} shard{'' if len(manifest.shards) == 1 else 's'}"
    print(f"{args.out}: latents of {manifest.count} pictures in {shards}, {size}")
    return ExitCode.OK


def devices_of(wanted: str, workers: int | None) -> list[str]:
    """The device of each process."""
    import torch

    require_at_least(1, workers=workers)
    count = 0 if wanted == "cpu" else torch.cuda.device_count()
    if wanted == "cuda" and not count:
        raise UserError("there is none here; use cpu", where="--device cuda")
    if not count:
        return ["cpu"] * (workers or _cores())
    return [f"cuda:{k % count}" for k in range(workers or count)]


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def classes_of(given: str, source: Source) -> tuple[str, ...]:
    """Names of the classes, where the pictures have a manifest."""
    from lit_restore.data.remote import RemoteSource, read_remote_manifest

    if isinstance(source, RemoteSource):
        return read_remote_manifest(given, cache=source.cache).classes
    folder = Path(given).expanduser()
    if fs.is_dir(folder) and fs.exists(folder / MANIFEST):
        return read_manifest(folder, check_files=False).classes
    return ()
