"""Training batches of ours against torchvision's ImageFolder and a plain webdataset pipeline.

All read the same 512 x 512 JPEGs (quality 95), cut a random 256 x 256 window, mirror half of them
and hand out batches of 16 as uint8, with two worker processes. Ours is the training loader of
`ShardDataModule`, once with each of its decoders. In each round every pipeline runs once, the next
round starts with another one; a ratio compares two pipelines of the same round.

    python benchmarks/data_path.py [--images PHOTOS.tar] [--rounds 12] [--out RESULT.json]
"""

from __future__ import annotations

import argparse
import gc
import importlib.metadata
import json
import multiprocessing
import os
import platform
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import webdataset as wds
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from lit_restore.data import ShardDataModule
from lit_restore.data.dead_leaves import procedural_image
from lit_restore.data.decode import DECODER, decode_image
from lit_restore.data.packing import write_shards
from lit_restore.data.sources import archive_of_images, folder_of_images

SIZE, CROP, BATCH, WORKERS, PREFETCH = 512, 256, 16, 2, 4
WARM = 8
"""Batches before the clock starts: the workers are up and their queues as full as they get."""


def write_pictures(folder: Path, count: int, photos: Path | None) -> None:
    """`count` JPEGs below `folder`/0: mosaics of four windows of photographs, or procedural."""
    (folder / "0").mkdir(parents=True)
    windows = [] if photos is None else photo_windows(photos)
    draw = np.random.default_rng(0)
    for k in range(count):
        if windows:
            a, b, c, d = (windows[j] for j in draw.choice(len(windows), 4, replace=False))
            pixels = np.concatenate([np.concatenate([a, b], 1), np.concatenate([c, d], 1)])
        else:
            pixels = procedural_image(0, k % 64, size=(SIZE, SIZE))
        # Colour subsampled, as in most photographs.
        Image.fromarray(pixels).save(folder / "0" / f"{k:05d}.jpg", quality=95)


def photo_windows(photos: Path) -> list[np.ndarray]:
    """The middle of each photograph that is large enough, (256, 256, 3)."""
    side, found = SIZE // 2, []
    for item in archive_of_images(photos).items:
        for part in item.parts:
            pixels = decode_image(part.read(), name=part.name)
            top, left = (pixels.shape[0] - side) // 2, (pixels.shape[1] - side) // 2
            if min(top, left) >= 0:
                found.append(pixels[top : top + side, left : left + side])
    return found


def ours(shards: Path, count: int, decoder: str, seed: int) -> Iterable[Any]:
    """Our training loader, one epoch."""
    os.environ[DECODER] = decoder
    data = ShardDataModule(
        train=str(shards), val=None, global_batch=BATCH, crop=CROP, flip=True, rotate=False,
        workers=WORKERS, prefetch=PREFETCH, total_samples=count, seed=seed,
    )  # fmt: skip
    data.setup("fit")
    return data.train_dataloader()


# On Pillow's picture, where cropping is cheapest, and to a tensor last.
TRANSFORM = v2.Compose([v2.RandomCrop(CROP), v2.RandomHorizontalFlip(), v2.PILToTensor()])


def image_folder(folder: Path) -> Iterable[Any]:
    """The data set of files of torchvision, with PyTorch's loader."""
    return DataLoader(
        ImageFolder(str(folder), TRANSFORM), batch_size=BATCH, shuffle=True,
        num_workers=WORKERS, prefetch_factor=PREFETCH,
    )  # fmt: skip


def web_dataset(shards: Path) -> Iterable[Any]:
    """The reader of webdataset on our shards."""
    urls = sorted(str(path) for path in shards.glob("*.tar"))
    samples = wds.WebDataset(urls, shardshuffle=len(urls)).shuffle(100).decode("pil")
    return wds.WebLoader(
        samples.to_tuple("jpg").map_tuple(TRANSFORM), batch_size=BATCH,
        num_workers=WORKERS, prefetch_factor=PREFETCH,
    )  # fmt: skip


def cpu_seconds() -> float:
    """Of this process, its workers, and its children that ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    ticks = 0
    for worker in multiprocessing.active_children():
        fields = Path(f"/proc/{worker.pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])  # proc(5): utime, stime
    return sum(part.ru_utime + part.ru_stime for part in used) + ticks / os.sysconf("SC_CLK_TCK")


def measure(make: Callable[[], Iterable[Any]], count: int) -> tuple[float, float]:
    """(images a second, CPU seconds an image), both once it runs."""
    batches = iter(make())
    for _ in islice(batches, WARM):
        pass
    seen, start, begun = 0, time.perf_counter(), cpu_seconds()
    for batch in batches:
        picture = batch["image"] if isinstance(batch, dict) else batch[0]
        assert picture.dtype == torch.uint8
        assert picture.shape[1:] == (3, CROP, CROP)
        seen += len(picture)
    speed = seen / (time.perf_counter() - start)
    assert seen + WARM * BATCH == count
    del batches, batch, picture
    gc.collect()  # the workers end here
    return speed, (cpu_seconds() - begun) / seen


def spread(values: list[float]) -> dict[str, float]:
    """Median and quartiles."""
    low, middle, high = statistics.quantiles(values, n=4)
    return {"median": round(middle, 4), "q1": round(low, 4), "q3": round(high, 4)}


def main() -> None:
    """Print the ratios and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=Path, help="a tar of photographs; procedural without")
    parser.add_argument("--count", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as temporary:
        folder, shards = Path(temporary, "pictures"), Path(temporary, "shards")
        write_pictures(folder, args.count, args.images)
        found = folder_of_images(folder).shuffled()
        made = write_shards(found, shards, per_shard=args.count // 8, progress=False)
        round_number = 0
        pipelines: dict[str, Callable[[], Iterable[Any]]] = {
            "ours, simplejpeg": lambda: ours(shards, args.count, "simplejpeg", round_number),
            "ours, Pillow": lambda: ours(shards, args.count, "pillow", round_number),
            "ImageFolder": lambda: image_folder(folder),
            "webdataset": lambda: web_dataset(shards),
        }
        names = list(pipelines)
        speeds: dict[str, list[float]] = {name: [] for name in names}
        costs: dict[str, list[float]] = {name: [] for name in names}
        for round_number in range(-1, args.rounds):
            first = round_number % len(names)
            for name in names[first:] + names[:first]:
                speed, cost = measure(pipelines[name], args.count)
                if round_number >= 0:  # the first round fills the page cache
                    speeds[name].append(speed)
                    costs[name].append(cost)
    peers = ("ImageFolder", "webdataset")
    ratios: dict[str, Any] = {}
    for name in names[:2]:
        for peer in peers:
            ratios[f"{name} / {peer}"] = {
                "speed": spread([a / b for a, b in zip(speeds[name], speeds[peer], strict=True)]),
                # What others do on a shared machine only ever slows down.
                "fastest_rounds": round(max(speeds[name]) / max(speeds[peer]), 4),
                "cpu": spread([b / a for a, b in zip(costs[name], costs[peer], strict=True)]),
            }
        better = [max(pair) for pair in zip(*(speeds[peer] for peer in peers), strict=True)]
        ratios[f"{name} / the better"] = {
            "speed": spread([a / b for a, b in zip(speeds[name], better, strict=True)])
        }
    result = {
        "what": "images a second of ours over a peer's in the same round (speed), and a peer's CPU "
        "seconds an image over ours (cpu); above 1 ours is faster or cheaper. Both from batch "
        f"{WARM} on, when the workers are up",
        "pictures": f"{args.count} JPEGs of {SIZE} x {SIZE}, quality 95, mean "
        f"{made.shards[0].size // made.shards[0].count // 1000} KB, "
        + ("mosaics of photographs" if args.images else "procedural"),
        "out": f"batches of {BATCH} random {CROP} x {CROP} windows, half mirrored, uint8",
        "rounds": args.rounds,
        "images_per_s": {name: spread(speeds[name]) for name in names},
        "cpu_ms_per_image": {name: spread([1e3 * c for c in costs[name]]) for name in names},
        "ratios": ratios,
        "machine": f"{WORKERS} workers on {os.cpu_count()} hardware threads of a shared "
        f"{platform.machine()} virtual machine, {torch.backends.cpu.get_cpu_capability()}, no GPU; "
        "files in the page cache",
        "load_before": round(load, 2),
        "versions": {
            "python": platform.python_version(),
            **{
                name: importlib.metadata.version(name)
                for name in ("torch", "torchvision", "webdataset", "pillow", "simplejpeg", "numpy")
            },
        },
    }
    text = json.dumps(result, indent=1)
    print(text)
    if args.out is not None:
        args.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
