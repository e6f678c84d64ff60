"""Shards of pictures → shards of what a burst network makes of bursts of them, in sRGB.

Each picture becomes one burst by unprocessing, drawn from (seed, key); the network's output and the
true picture are processed back with what was drawn, as DP-IR fuses them. Made as
`lit_restore.data.derived_shards` says.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from lit_restore.data.batch import Sample
from lit_restore.data.bursts import BurstOptions, process, synthesize_burst
from lit_restore.data.derived_part import Made, Part, ThreadedReader, write_parts
from lit_restore.data.derived_shards import Derivation, shard_names
from lit_restore.data.encode import Packed
from lit_restore.data.manifest import Manifest
from lit_restore.data.memory import memory_is_short
from lit_restore.data.reader import Source
from lit_restore.data.restored_shards import plan_of, text_with
from lit_restore.errors import UserError
from lit_restore.io import images
from lit_restore.io.quantise import from_pixels, to_uint8
from lit_restore.networks import BURST_RESTORERS
from lit_restore.networks.base import Network
from lit_restore.seeding import torch_generator
from lit_restore.weights.loading import LoadedNetwork, load_network, network_kind
from lit_restore.weights.prior import model_config
from lit_restore.weights.restorers import weights_sha256


def is_burst_network(path: str) -> bool:
    """Whether a run, checkpoint or exported file of ours holds a burst network."""
    return network_kind(path) in BURST_RESTORERS


def restore_bursts(
    source: Source,
    restorer: str,
    out: Path,
    *,
    seed: int = 0,
    devices: Sequence[str] = ("cpu",),
    classes: Sequence[str] = (),
    progress: bool = True,
) -> Manifest:
    """Make a burst of every picture and restore it, going on where a call was interrupted.

    Args:
        source: clean pictures.
        restorer: what was trained with `task: burst`.
        out: folder of the new shards; made if need be; holds nothing else.
        seed: of the bursts.
        devices: one for each process.
        classes: names of the classes, for the manifest.
        progress: show a bar (lines where stderr is no terminal).

    Returns:
        The manifest, as written.

    Raises:
        UserError: a picture or the network cannot be read, a picture is too small, or the folder
            holds other shards, is in use, or cannot be written.
        SaveError: the disk is full, or went away.
        RankLost: a process was killed.
    """
    loaded = load_network(restorer)
    options = burst_options_of(loaded)
    digest = weights_sha256(loaded.net.state_dict())
    about: dict[str, object] = {
        "restorer": digest, "scale": 8, "seed": seed,
        "degradation": {"name": "burst", "options": asdict(options)},
    }  # fmt: skip
    make = partial(
        burst_part, source=source, names=tuple(shard_names(source)), folder=out,
        restorer=restorer, digest=digest, seed=seed,
    )  # fmt: skip
    derivation = Derivation(
        source=source,
        folder=out,
        make=make,
        fields=("image", "restored"),
        text=partial(text_with, about=about),
    )
    plan = plan_of(source, about, classes)
    return derivation.run(plan, devices=devices, classes=classes, progress=progress)


def burst_part(
    part: Part,
    *,
    source: Source,
    names: Sequence[str],
    folder: Path,
    restorer: str,
    digest: str,
    seed: int,
) -> Iterator[int | Made]:
    """Make shards, one after the other; see `write_parts`."""
    reader = ThreadedReader(source)
    loaded = load_network(restorer)
    if weights_sha256(loaded.net.state_dict()) != digest:
        raise UserError("changed meanwhile; run the same command again", where=restorer)
    net, options = loaded.net.to(part.device), burst_options_of(loaded)
    yield from write_parts(
        part, source, names, folder,
        read=lambda index: (source.where(index), reader(index)),
        pack=lambda samples: [
            burst_sample(*each, net, seed, part.device, options) for each in samples
        ],
        batch=1,
    )  # fmt: skip


def burst_options_of(loaded: LoadedNetwork) -> BurstOptions:
    """How the bursts of a network's training were made, noise always among it."""
    config = model_config(loaded)
    fields = ("max_translation", "max_rotation", "border")
    given: dict[str, Any] = {name: config[name] for name in fields if name in config}
    try:
        return BurstOptions(**given)
    except (UserError, TypeError):
        raise UserError("its configuration is damaged", where=loaded.source) from None


@torch.no_grad()
def burst_sample(
    where: str,
    sample: Sample,
    net: Network,
    seed: int,
    device: str = "cpu",
    options: BurstOptions | None = None,
) -> Packed:
    """One sample as the members of a shard: true and restored picture in sRGB, as PNG.

    Raises:
        UserError: it holds no picture or one too small, or memory is short.
    """
    if not sample.image.size or sample.degraded is not None:
        raise UserError("is no picture alone; only such become bursts", where=where)
    image = from_pixels(sample.image)[0].to(device)
    frames = getattr(net, "frames", 14)
    try:
        burst, target, drawn = synthesize_burst(
            image, frames, torch_generator(seed, sample.key, "burst"), options
        )
        restored = process(net(burst[None])[0].float(), drawn)
        if not restored.isfinite().all():
            raise UserError("the network's output is not finite")
    except UserError as error:
        raise UserError(error.message, where=where) from None
    except (RuntimeError, MemoryError) as error:
        if not memory_is_short(error):
            raise
        raise UserError("is too large for the memory", where=where) from None
    pictures = {"image": process(target, drawn), "restored": restored}
    members = {
        f"{name}.png": images.png_bytes(to_uint8(p[None])[0]) for name, p in pictures.items()
    }
    label = {} if sample.label is None else {"cls": str(sample.label).encode()}
    return Packed(sample.key, {**label, **members})
