"""Shards of pictures → shards of latents: each picture encoded once, before training.

A shard of latents has the name and the keys of the shard of pictures it comes from, and depends on
that one alone, so that any number of processes and interruptions gives the same bytes on one kind
of device (the last bits of a convolution depend on the processor or GPU and on PyTorch's version).
The folder is made as `lit_restore.data.packing` makes one: `plan.json` first, each shard published
by one rename, `manifest.json` last.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch

from lit_restore.data.decode import decoder_name
from lit_restore.data.latent_encoding import Made, Part, encode_part
from lit_restore.data.latents import ENTRY, ComputeType, LatentInfo, StoredType
from lit_restore.data.manifest import (
    MANIFEST,
    PLAN,
    Manifest,
    Shard,
    file_sha256,
    manifest_text,
)
from lit_restore.data.merged import merged
from lit_restore.data.packing_folder import MADE_BY, PackingPlan, finished, locked
from lit_restore.data.packing_progress import Progress
from lit_restore.data.reader import Source
from lit_restore.errors import SaveError, UserError, require_at_least
from lit_restore.io import archive, fs
from lit_restore.io.lock import NAME as LOCK
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
    plan = _make_plan(source, info, classes)
    job = _Job(source, vae, out, info, readers)
    done = _found(out, plan)
    if done is None:
        with locked(out, wait=False):
            done = _found(out, plan)  # by a process that ended meanwhile
            if done is None:
                try:
                    done = job.run(plan, devices, tuple(classes), progress=progress)
                except OSError as error:
                    mend = "make room and run the same command again"
                    raise SaveError(f"{out}: {error.strerror or error}; {mend}") from error
    for rest in (PLAN, LOCK):
        if fs.exists(out / rest):
            fs.remove_file(out / rest)
    return done


@dataclass(frozen=True)
class _Job:
    """One run of `encode_shards`."""

    source: Source
    vae: Path
    folder: Path
    info: LatentInfo
    readers: int

    def run(
        self,
        plan: _LatentPlan,
        devices: Sequence[str],
        classes: tuple[str, ...],
        *,
        progress: bool,
    ) -> Manifest:
        """Make what is missing, then the manifest."""
        names = shard_names(self.source)
        fs.write_atomic(self.folder / PLAN, plan.text())
        self._sweep()
        kept = {k: found for k, name in enumerate(names) if (found := self._kept(k, name))}
        missing = [k for k in range(len(names)) if k not in kept]
        todo = sum(self.source.counts[k] for k in missing)
        with Progress(todo, enabled=progress) as bar:
            made = {shard.number: shard for shard in self._made(missing, names, devices, bar)}
        shards = [shard for _, shard in sorted((kept | made).items())]
        labelled = all(shard.labelled for shard in shards)
        manifest = Manifest(
            fields=("array", "label") if labelled else ("array",),
            count=sum(shard.shard.count for shard in shards),
            classes=classes,
            shards=tuple(shard.shard for shard in shards),
            plan=plan.plan,
            made_by=plan.made_by,
        )
        fs.write_atomic(self.folder / MANIFEST, _with_info(manifest, self.info))
        return manifest

    def _sweep(self) -> None:
        for path in fs.list_dir(self.folder):
            if path.name.startswith(fs.TEMPORARY):
                fs.remove_file(path)

    def _kept(self, number: int, name: str) -> Made | None:
        """A shard that an interrupted call finished."""
        path = self.folder / name
        if not fs.exists(path):
            return None
        members = [member.name for member in archive.scan_tar(path)]
        count = sum(member.endswith(".npy") for member in members)
        if count != self.source.counts[number]:
            told = f"holds {count} of {self.source.counts[number]} samples; remove it"
            raise UserError(told, where=path)
        shard = Shard(name=name, count=count, size=fs.size(path), sha256=file_sha256(path))
        return Made(number, shard, labelled=len(members) == 2 * count)

    def _made(
        self, missing: list[int], names: Sequence[str], devices: Sequence[str], bar: Progress
    ) -> Iterator[Made]:
        """The missing shards, in the order in which they are finished."""
        count = min(len(devices), len(missing))
        parts = [
            Part(numbers=tuple(missing[k::count]), device=devices[k], readers=self.readers)
            for k in range(count)
        ]
        make = partial(
            encode_part,
            source=self.source,
            names=tuple(names),
            folder=self.folder,
            vae=self.vae,
            info=self.info,
        )
        cuda = any(device.startswith("cuda") for device in devices)
        try:
            for told in merged(make, parts, start="spawn" if cuda else "fork"):
                if isinstance(told, Made):
                    bar.say(f"{told.shard.name}: {told.shard.count} samples")
                    yield told
                else:
                    for _ in range(told):
                        bar.step()
        finally:
            self._sweep()  # what processes that were ended had begun


def shard_names(source: Source) -> list[str]:
    """Names of the shards to be made: those of the source's.

    Raises:
        UserError: two have one name.
    """
    names = [f"{Path(str(row[0])).stem}.tar" for row in source.fingerprint()]
    for name in names:
        if names.count(name) > 1:
            raise UserError("two shards have this name; encode each folder by itself", where=name)
    return names


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


def _found(out: Path, plan: _LatentPlan) -> Manifest | None:
    """The manifest where this plan is done; None where it is to be made or gone on with.

    Raises:
        UserError: the folder holds something else; says what differs where that is known.
    """
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
