"""Shards of pictures → shards that also hold what a restoration network makes of them.

R(y) does not depend on the time that a fusion training draws: made once, it costs no step anything.
The degraded picture is made from the clean one, or lies in the shards; it is rounded to 8 bits
before it is restored, as a picture from a file is, and so is the result. Made as
`lit_restore.data.derived_shards` says.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lit_restore.data.batch import Sample
from lit_restore.data.decode import decoder_name
from lit_restore.data.degradations import Record, build_degradation
from lit_restore.data.derived_part import Made, Part, ThreadedReader, write_parts
from lit_restore.data.derived_shards import Derivation, shard_names
from lit_restore.data.encode import Packed
from lit_restore.data.manifest import MANIFEST, Manifest, manifest_text
from lit_restore.data.memory import memory_is_short
from lit_restore.data.packing_folder import MADE_BY, PackingPlan
from lit_restore.data.reader import CachedSource, ShardSource, Source
from lit_restore.errors import UserError
from lit_restore.io import fs, images
from lit_restore.io.quantise import from_pixels, to_uint8
from lit_restore.networks.restoration import RestorationNetwork
from lit_restore.seeding import torch_generator
from lit_restore.weights.restorers import load_restorer

Pixels = npt.NDArray[np.uint8]
_LIMIT = 64 << 20
ENTRY = "restored"
"""Of `manifest.json`: what was restored by what."""


@dataclass(frozen=True, kw_only=True)
class RestoredInfo:
    """How the restored pictures were made."""

    restorer: str
    """sha256 of the weights."""
    scale: int
    """Of the network."""
    degradation: Record | None
    """None: the shards held the degraded pictures."""
    seed: int
    """Of the degradation, with each picture's key."""

    def described(self) -> dict[str, object]:
        """As it stands in the manifest."""
        given = None if self.degradation is None else dict(self.degradation)
        return {
            "restorer": self.restorer, "scale": self.scale, "degradation": given, "seed": self.seed,
        }  # fmt: skip


def restore_shards(
    source: Source,
    restorer: str,
    out: Path,
    *,
    degradation: Record | None = None,
    seed: int = 0,
    devices: Sequence[str] = ("cpu",),
    classes: Sequence[str] = (),
    progress: bool = True,
) -> Manifest:
    """Restore all pictures of a data set, going on where an earlier call was interrupted.

    Args:
        source: clean pictures, or pairs.
        restorer: a restoration network as `load_restorer` reads it.
        out: folder of the new shards; made if need be; holds nothing else.
        degradation: that makes the degraded pictures; none where the shards hold them.
        seed: of the degradation.
        devices: one for each process.
        classes: names of the classes, for the manifest.
        progress: show a bar (lines where stderr is no terminal).

    Returns:
        The manifest, as written; `manifest.json` also has the `RestoredInfo`.

    Raises:
        UserError: a picture or the network cannot be read, the shards hold pairs and a degradation
            is given (or neither), the network's scale is another one, the folder holds other
            shards, is in use, or cannot be written.
        SaveError: the disk is full, or went away.
        RankLost: a process was killed.
    """
    loaded = load_restorer(restorer)
    if degradation is not None:
        build_degradation(degradation)
    info = RestoredInfo(
        restorer=loaded.sha256, scale=loaded.net.scale, degradation=degradation, seed=seed
    )
    make = partial(
        restore_part, source=source, names=tuple(shard_names(source)), folder=out,
        restorer=restorer, info=info,
    )  # fmt: skip
    derivation = Derivation(
        source=source,
        folder=out,
        make=make,
        fields=("degraded", "image", "restored"),
        text=partial(text_with, about=info.described()),
    )
    plan = plan_of(source, info.described(), classes)
    return derivation.run(plan, devices=devices, classes=classes, progress=progress)


def restored_by(source: Source) -> dict[str, object] | None:
    """What the manifest beside shards says of their restored pictures (`RestoredInfo.described`).

    Args:
        source: local shards, opened.

    Returns:
        None where there is no manifest, or none that says so; or the shards are of several.

    Raises:
        UserError: a manifest is damaged.
    """
    if isinstance(source, CachedSource):
        source = source.source
    if not isinstance(source, ShardSource):
        return None
    folders = {shard.path.parent for shard in source.shards}
    found = [_entry(folder / MANIFEST) for folder in sorted(folders)]
    return found[0] if len(found) == 1 else None


def _entry(path: Path) -> dict[str, object] | None:
    if not fs.exists(path):
        return None
    try:
        told = json.loads(fs.read_text(path, limit=_LIMIT)).get(ENTRY)
    except (ValueError, AttributeError, RecursionError):
        told = ""
    if told is not None and not (isinstance(told, dict) and isinstance(told.get("restorer"), str)):
        raise UserError("is damaged; make the shards again", where=path)
    return told


def restore_part(
    part: Part,
    *,
    source: Source,
    names: Sequence[str],
    folder: Path,
    restorer: str,
    info: RestoredInfo,
) -> Iterator[int | Made]:
    """Make shards, one after the other; see `write_parts`."""
    reader = ThreadedReader(source)
    loaded = load_restorer(restorer)
    if loaded.sha256 != info.restorer:
        raise UserError("changed meanwhile; run the same command again", where=restorer)
    net = loaded.net.to(part.device)
    yield from write_parts(
        part, source, names, folder,
        read=lambda index: (source.where(index), reader(index)),
        pack=lambda samples: [restored_sample(*each, net, info, part.device) for each in samples],
        batch=1,
    )  # fmt: skip


def restored_sample(
    where: str, sample: Sample, net: RestorationNetwork, info: RestoredInfo, device: str = "cpu"
) -> Packed:
    """One sample as the members of a shard: clean, degraded and restored pictures as PNG.

    Raises:
        UserError: it holds no picture, or a pair where a degradation is given (or the other way
            round); sizes do not fit the network; or memory is short.
    """
    if not sample.image.size:
        raise UserError("holds no picture", where=where)
    if (sample.degraded is None) == (info.degradation is None):
        told = (
            "holds no degraded picture; give --degradation"
            if sample.degraded is None
            else "holds its degraded picture; leave --degradation out"
        )
        raise UserError(told, where=where)
    clean = _cut(sample.image, info.scale)
    degraded = sample.degraded
    if degraded is None:
        degraded = _degraded(clean, info, sample.key)
    try:
        images_in = from_pixels(degraded).to(device)
        net.tile_output(images_in)
        output = net(images_in)
    except (RuntimeError, MemoryError) as error:
        if not memory_is_short(error):
            raise
        raise UserError("is too large for the memory", where=where) from None
    if not output.isfinite().all():
        raise UserError("the network's output is not finite", where=where)
    restored = to_uint8(output)[0]
    if restored.shape != clean.shape:
        sides = [f"{p.shape[1]}x{p.shape[0]}" for p in (degraded, clean)]
        told = f"is {sides[0]} for {sides[1]}, the network enlarges by {info.scale}"
        raise UserError(told, where=where)
    label = {} if sample.label is None else {"cls": str(sample.label).encode()}
    pictures = {"image": clean, "degraded": degraded, "restored": restored}
    members = {f"{name}.png": images.png_bytes(p) for name, p in pictures.items()}
    return Packed(sample.key, {**label, **members})


def _cut(image: Pixels, scale: int) -> Pixels:
    """To multiples of the scale, at the bottom and the right."""
    height, width = (side // scale * scale for side in image.shape[:2])
    return np.ascontiguousarray(image[:height, :width])


def _degraded(clean: Pixels, info: RestoredInfo, key: str) -> Pixels:
    assert info.degradation is not None
    degradation = build_degradation(info.degradation)
    image: Tensor = from_pixels(clean)[0]
    degraded = degradation(image, torch_generator(info.seed, key, "degradation"))
    pixels: Pixels = to_uint8(degraded[None])[0]
    return pixels


def plan_of(source: Source, about: Mapping[str, object], classes: Sequence[str]) -> PackingPlan:
    """What identifies shards of restored pictures.

    Args:
        source: what they are made of.
        about: how, as it stands in the manifest.
        classes: names of the classes.
    """
    text = json.dumps([source.fingerprint(), list(classes), about], sort_keys=True)
    stamp = f"{decoder_name()}, torch-{torch.__version__}"
    return PackingPlan(plan=hashlib.sha256(text.encode()).hexdigest(), stamp=stamp, made_by=MADE_BY)


def text_with(manifest: Manifest, about: Mapping[str, object]) -> str:
    """The manifest's text with how the pictures were restored."""
    content = {**json.loads(manifest_text(manifest)), ENTRY: about}
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"
