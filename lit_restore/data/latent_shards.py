"""Shards of pictures → shards of latents: each picture encoded once, before training.

Made as `lit_restore.data.derived_shards` says.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch

from lit_restore.data.decode import decoder_name
from lit_restore.data.derived_shards import Derivation, shard_names
from lit_restore.data.latent_encoding import encode_part
from lit_restore.data.latents import ENTRY, ComputeType, LatentInfo, StoredType
from lit_restore.data.manifest import (
    MANIFEST,
    PLAN,
    Manifest,
    manifest_text,
)
from lit_restore.data.packing_folder import MADE_BY, PackingPlan, finished
from lit_restore.data.reader import Source
from lit_restore.errors import UserError, require_at_least
from lit_restore.io import fs
from lit_restore.weights.autoencoder import check_multiple, read_autoencoder_info

_LIMIT = 64 << 20
_MOST = 8192
_GIVE = "give another folder, or remove this one"


@dataclass(frozen=True, kw_only=True)
class LatentOptions:
    """How pictures become latents."""

    size: int = 256
    """Side of the square that is cut from each picture's middle, pixels."""
    batch: int = 32
    """Pictures encoded at once."""
    dtype: StoredType = "float16"
    """As stored. float16 keeps latents to 0.05 %."""
    compute: ComputeType = "float32"
    """What the autoencoder computes in."""
    mirrored: bool = True
    """Encode the mirror image too."""


@dataclass(frozen=True, kw_only=True)
class _LatentPlan(PackingPlan):
    latents: dict[str, object]
    """`LatentInfo.described`."""


def encode_shards(
    source: Source,
    vae: Path,
    out: Path,
    *,
    options: LatentOptions = LatentOptions(),  # noqa: B008
    devices: Sequence[str] = ("cpu",),
    classes: Sequence[str] = (),
    readers: int = 2,
    progress: bool = True,
) -> Manifest:
    """Encode all pictures of a data set, going on where an earlier call was interrupted.

    Args:
        source: pictures, with or without labels, and nothing else.
        vae: folder of an autoencoder as `load_autoencoder` reads it.
        out: folder of the new shards; made if need be; holds nothing else.
        options: what of the pictures is encoded, and how it is stored.
        devices: one for each process; process k of n makes shards k, k + n, … of those missing.
        classes: names of the classes, for the manifest.
        readers: threads that read and decode pictures, in each process.
        progress: show a bar (lines where stderr is no terminal).

    Returns:
        The manifest, as written; `manifest.json` also has the `LatentInfo`.

    Raises:
        UserError: options out of range, a picture or the autoencoder cannot be read, the folder
            holds other shards, is in use, or cannot be written.
        SaveError: the disk is full, or went away.
        RankLost: a process was killed.
    """
    info = _latent_info(vae, options)
    make = partial(
        encode_part, source=source, names=tuple(shard_names(source)), folder=out, vae=vae, info=info
    )
    derivation = Derivation(
        source=source,
        folder=out,
        make=make,
        fields=("array",),
        text=partial(_with_info, info=info),
        readers=readers,
    )
    plan = _make_plan(source, info, classes)
    return derivation.run(plan, found=_found, devices=devices, classes=classes, progress=progress)


def _latent_info(vae: Path, options: LatentOptions) -> LatentInfo:
    require_at_least(1, size=options.size, batch=options.batch)
    found = read_autoencoder_info(vae)
    check_multiple(found, options.size)
    if options.size > _MOST:
        raise UserError(f"{options.size} is above {_MOST} pixels", where="size")
    return LatentInfo(
        vae=found.sha256,
        factor=found.factor,
        channels=found.channels,
        scaling_factor=found.scaling_factor,
        shift_factor=found.shift_factor,
        **asdict(options),
    )


def _make_plan(source: Source, info: LatentInfo, classes: Sequence[str]) -> _LatentPlan:
    text = json.dumps([source.fingerprint(), list(classes), asdict(info)], sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()
    return _LatentPlan(plan=digest, stamp=_versions(), made_by=MADE_BY, latents=info.described())


def _versions() -> str:
    """What can change the last bits: an unfinished folder is gone on with by the same only."""
    try:
        diffusers = importlib.metadata.version("diffusers")
    except importlib.metadata.PackageNotFoundError:
        diffusers = "missing"
    return f"{decoder_name()}, torch-{torch.__version__}, diffusers-{diffusers}"


def _found(out: Path, plan: PackingPlan) -> Manifest | None:
    """The manifest where this plan is done; None where it is to be made or gone on with.

    Raises:
        UserError: the folder holds something else; says what differs where that is known.
    """
    assert isinstance(plan, _LatentPlan)
    if fs.exists(out / MANIFEST):
        _refuse_others(out / MANIFEST, plan)
    elif fs.exists(out / PLAN) and any(path.suffix == ".tar" for path in fs.list_dir(out)):
        _refuse_others(out / PLAN, plan)
    return finished(out, plan)


def _refuse_others(path: Path, plan: _LatentPlan) -> None:
    out, text = path.parent, fs.read_text(path, limit=_LIMIT)
    try:
        found = json.loads(text)
        held, stamp = found[ENTRY], found.get("stamp", plan.stamp)
        theirs = {name: held.get(name) for name in plan.latents}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return  # no latents: refused, if it holds anything
    if theirs["vae"] != plan.latents["vae"]:
        raise UserError(f"holds latents of another VAE; {_GIVE}", where=out)
    for name, ours in plan.latents.items():
        if theirs[name] != ours:
            told = f"holds latents made with {name} {theirs[name]}, not {ours}; {_GIVE}"
            raise UserError(told, where=out)
    if stamp != plan.stamp:
        raise UserError(f"was begun with {stamp}, here are {plan.stamp}; {_GIVE}", where=out)


def _with_info(manifest: Manifest, info: LatentInfo) -> str:
    """The manifest's text with the description of the latents, which other readers pass over."""
    content = {**json.loads(manifest_text(manifest)), ENTRY: info.described()}
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"
