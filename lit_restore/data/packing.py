"""Shards in webdataset's format, written so that a kill at any moment costs at most one shard.

A folder in the making holds `plan.json` and the shards finished so far, each published by one
rename; `manifest.json` comes last. Which samples a shard holds follows from the plan alone, so
that any number of workers and interruptions gives the same bytes. webdataset's own `TarWriter`
writes the archives.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path

from lit_restore.data.encode import Bad, Encoding, Packed, pack_items
from lit_restore.data.manifest import (
    MANIFEST,
    PLAN,
    Manifest,
    Shard,
    file_sha256,
    manifest_text,
)
from lit_restore.data.packing_folder import (
    MADE_BY,
    PackingPlan,
    ShardDraft,
    finished,
    locked,
)
from lit_restore.data.packing_progress import Progress
from lit_restore.data.sources import Collection, Item
from lit_restore.data.workers import ordered_map
from lit_restore.errors import SaveError, UserError, require_at_least
from lit_restore.io import archive, fs
from lit_restore.io.image_headers import check_size
from lit_restore.io.lock import NAME as LOCK

_log = logging.getLogger(__name__)

_CHUNK = 4


def write_shards(
    collection: Collection,
    out_dir: Path,
    *,
    per_shard: int = 1000,
    encoding: Encoding = Encoding(),  # noqa: B008
    max_bad: int = 0,
    name: str = "train-%06d.tar",
    workers: int = 1,
    progress: bool = True,
    wait: bool = False,
) -> Manifest:
    """Write a collection into shards, going on where an earlier call was interrupted.

    Args:
        collection: the samples, in order.
        out_dir: made if need be; holds nothing else.
        per_shard: samples a shard, before they are cut into tiles.
        encoding: how pictures are stored.
        max_bad: samples that may be left out because they cannot be packed.
        name: of the shards; takes the number.
        workers: processes that read, check and encode.
        progress: show a bar (lines where stderr is no terminal).
        wait: for another process that makes the same shards; refused otherwise.

    Returns:
        The manifest, as written.

    Raises:
        UserError: options out of range, more than `max_bad` bad samples, the folder holds other
            shards, is in use, or cannot be written.
        SaveError: the disk is full, or went away.
        RankLost: a worker was killed.
    """
    _check_numbers(per_shard, encoding, max_bad, workers)
    _check_shaping(collection, encoding)
    plan = _plan(collection, per_shard, encoding, name)
    done = finished(out_dir, plan)
    if done is None:
        with locked(out_dir, wait=wait):
            done = finished(out_dir, plan)  # by the process waited for
            if done is None:
                packing = _Packing(collection, out_dir, per_shard, encoding, max_bad, name, workers)
                done = _saved(packing, plan, progress=progress)
    # The manifest stands, so that whoever still holds the old lock file finds nothing to do.
    for rest in (PLAN, LOCK):
        if fs.exists(out_dir / rest):
            fs.remove_file(out_dir / rest)
    return done


def _saved(packing: _Packing, plan: PackingPlan, *, progress: bool) -> Manifest:
    try:
        return packing.run(plan, progress=progress)
    except OSError as error:
        mend = "make room and run the same command again"
        raise SaveError(f"{packing.folder}: {error.strerror or error}; {mend}") from error


class _Packing:
    """One run of `write_shards`."""

    def __init__(
        self,
        collection: Collection,
        folder: Path,
        per_shard: int,
        encoding: Encoding,
        max_bad: int,
        name: str,
        workers: int,
    ) -> None:
        self.collection, self.folder, self.encoding = collection, folder, encoding
        self.max_bad, self.name, self.workers = max_bad, name, workers
        items = collection.items
        self.parts = [items[k : k + per_shard] for k in range(0, len(items), per_shard)]
        self.bad = 0

    def run(self, plan: PackingPlan, *, progress: bool) -> Manifest:
        """Make what is missing, then the manifest."""
        fs.write_atomic(self.folder / PLAN, plan.text())
        self._sweep()
        kept = {number: shard for number in range(len(self.parts)) if (shard := self._kept(number))}
        missing = [number for number in range(len(self.parts)) if number not in kept]
        todo = sum(len(self.parts[number]) for number in missing)
        with Progress(todo, enabled=progress) as bar:
            results = self._results(missing)
            made = {number: self._write(number, results, bar) for number in missing}
        numbered = sorted((kept | made).items())
        shards = tuple(shard for _, shard in numbered if shard is not None)
        if not shards:
            raise UserError("none of the samples could be packed", where=self.collection.where)
        manifest = Manifest(
            fields=self.collection.fields,
            count=sum(shard.count for shard in shards),
            classes=self.collection.classes,
            shards=shards,
            plan=plan.plan,
            made_by=plan.made_by,
        )
        fs.write_atomic(self.folder / MANIFEST, manifest_text(manifest))
        return manifest

    def _path(self, number: int) -> Path:
        return self.folder / (self.name % number)

    def _sweep(self) -> None:
        for path in fs.list_dir(self.folder):
            if path.name.startswith(fs.TEMPORARY):
                fs.remove_file(path)

    def _kept(self, number: int) -> Shard | None:
        """A shard that an interrupted call finished; its bad samples are counted again."""
        path = self._path(number)
        if not fs.exists(path):
            return None
        members = archive.scan_tar(path)
        keys = {archive.sample_key(member.name) or "" for member in members}
        # Without the suffix of tiles: what is left are the keys of the items.
        packed = {key.rpartition("-r")[0] for key in keys} if self.encoding.tile else keys
        for item in self.parts[number]:
            if item.key not in packed:
                self._refuse(Bad(item.where, "left out by the interrupted run"))
        return Shard(name=path.name, count=len(keys), size=fs.size(path), sha256=file_sha256(path))

    def _results(self, numbers: Sequence[int]) -> Iterator[list[Packed] | Bad]:
        """What becomes of the items of these shards, in order."""
        items = (item for number in numbers for item in self.parts[number])
        pack = partial(pack_items, encoding=self.encoding)
        chunk = 1 if self.encoding.tile else _CHUNK
        for results in ordered_map(pack, _chunks(items, chunk), workers=self.workers):
            yield from results

    def _write(
        self, number: int, results: Iterator[list[Packed] | Bad], bar: Progress
    ) -> Shard | None:
        """Write one shard and publish it; None where all of its samples are bad."""
        path = self._path(number)
        draft, count = ShardDraft(path), 0
        try:
            for result in islice(results, len(self.parts[number])):
                if isinstance(result, Bad):
                    self._refuse(result)
                else:
                    count += draft.add(result)
                bar.step()
            if not count:
                draft.abandon()
                return None
            shard = draft.publish(count)
        except BaseException:
            draft.abandon()
            raise
        bar.say(f"{path.name}: {count} samples")
        return shard

    def _refuse(self, bad: Bad) -> None:
        self.bad += 1
        if self.bad > self.max_bad:
            told = "" if self.max_bad == 0 else f"more than {self.max_bad} bad samples; "
            mend = "mend or remove it, or allow some with --max_bad"
            raise UserError(f"{bad.reason}; {told}{mend}", where=bad.where)
        _log.warning("%s: %s; left out", bad.where, bad.reason)


def _chunks(items: Iterator[Item], size: int) -> Iterator[list[Item]]:
    while chunk := list(islice(items, size)):
        yield chunk


def _plan(collection: Collection, per_shard: int, encoding: Encoding, name: str) -> PackingPlan:
    options = {"per_shard": per_shard, "name": name, **encoding.described()}
    text = json.dumps([collection.digest(), options], sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()
    return PackingPlan(plan=digest, stamp=collection.stamp(), made_by=MADE_BY)


def _check_numbers(per_shard: int, encoding: Encoding, max_bad: int, workers: int) -> None:
    for key, value, least in (
        ("per_shard", per_shard, 1),
        ("tile", encoding.tile, 16),
        ("pad", encoding.pad, 1),
        ("resize", encoding.resize, 1),
        ("max_bad", max_bad, 0),
        ("workers", workers, 1),
    ):
        require_at_least(least, **{key: value})


def _check_shaping(collection: Collection, encoding: Encoding) -> None:
    """Refuse what would change the pictures' size where that cannot be."""
    wanted = encoding.shaping
    if not wanted:
        return
    first = collection.items[0]
    if len(wanted) > 1:
        raise UserError(f"not with --{wanted[0]}; give one of them", where=wanted[1])
    if first.array is not None:
        raise UserError(
            f"arrays are not cut, resized or padded; pack without --{wanted[0]}", where=wanted[0]
        )
    if first.degraded is not None and encoding.tile is None:
        raise UserError("pairs are not resized or padded; pack without it", where=wanted[0])
    side = encoding.resize or encoding.pad
    if side is not None:
        check_size(side, side, wanted[0])
