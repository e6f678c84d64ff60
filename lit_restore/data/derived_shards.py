"""Shards made of other shards, sample by sample: latents of pictures, restored pictures of pairs.

A made shard has the name and the keys of the shard it comes from, and depends on that one alone, so
that any number of processes and interruptions gives the same bytes on one kind of device (the last
bits of a convolution depend on the processor or GPU and on PyTorch's version). The folder is made
as `lit_restore.data.packing` makes one: `plan.json` first, each shard published by one rename,
`manifest.json` last.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lit_restore.data.derived_part import Made, Part
from lit_restore.data.manifest import MANIFEST, PLAN, Manifest, Shard, file_sha256
from lit_restore.data.merged import merged
from lit_restore.data.packing_folder import PackingPlan, finished, locked
from lit_restore.data.packing_progress import Progress
from lit_restore.data.reader import Source
from lit_restore.errors import SaveError, UserError
from lit_restore.io import archive, fs
from lit_restore.io.lock import NAME as LOCK


@dataclass(frozen=True, kw_only=True)
class Derivation:
    """How the shards of a folder are made of a source's."""

    source: Source
    folder: Path
    """Of the new shards; made if need be; holds nothing else."""
    make: Callable[[Part], Iterator[int | Made]]
    """One process's work, with whatever it needs bound to it; picklable where it runs on a GPU."""
    fields: tuple[str, ...]
    """What each new sample has, beside the label where the old ones have one."""
    text: Callable[[Manifest], str]
    """What `manifest.json` says."""
    readers: int = 2
    """Threads that read and decode, in each process."""

    def run(
        self,
        plan: PackingPlan,
        *,
        found: Callable[[Path, PackingPlan], Manifest | None] = finished,
        devices: Sequence[str] = ("cpu",),
        classes: Sequence[str] = (),
        progress: bool = True,
    ) -> Manifest:
        """Make all shards, going on where an earlier call was interrupted.

        Args:
            plan: what identifies the folder.
            found: the manifest of a finished folder; refuses one of another plan.
            devices: one for each process; process k of n makes shards k, k + n, … of those missing.
            classes: names of the classes, for the manifest.
            progress: show a bar (lines where stderr is no terminal).

        Returns:
            The manifest, as written.

        Raises:
            UserError: a sample cannot be read, the folder holds other shards, is in use, or cannot
                be written.
            SaveError: the disk is full, or went away.
            RankLost: a process was killed.
        """
        done = found(self.folder, plan)
        if done is None:
            with locked(self.folder, wait=False):
                done = found(self.folder, plan)  # by a process that ended meanwhile
                if done is None:
                    try:
                        done = self._make_all(plan, devices, tuple(classes), progress=progress)
                    except OSError as error:
                        mend = "make room and run the same command again"
                        told = f"{self.folder}: {error.strerror or error}; {mend}"
                        raise SaveError(told) from error
        for rest in (PLAN, LOCK):
            if fs.exists(self.folder / rest):
                fs.remove_file(self.folder / rest)
        return done

    def _make_all(
        self, plan: PackingPlan, devices: Sequence[str], classes: tuple[str, ...], *, progress: bool
    ) -> Manifest:
        """Make what is missing, then the manifest."""
        names = shard_names(self.source)
        fs.write_atomic(self.folder / PLAN, plan.text())
        self._sweep()
        kept = {k: found for k, name in enumerate(names) if (found := self._kept(k, name))}
        missing = [k for k in range(len(names)) if k not in kept]
        todo = sum(self.source.counts[k] for k in missing)
        with Progress(todo, enabled=progress) as bar:
            made = {shard.number: shard for shard in self._made(missing, devices, bar)}
        shards = [shard for _, shard in sorted((kept | made).items())]
        labelled = all(shard.labelled for shard in shards)
        manifest = Manifest(
            fields=tuple(sorted({*self.fields, "label"} if labelled else self.fields)),
            count=sum(shard.shard.count for shard in shards),
            classes=classes,
            shards=tuple(shard.shard for shard in shards),
            plan=plan.plan,
            made_by=plan.made_by,
        )
        fs.write_atomic(self.folder / MANIFEST, self.text(manifest))
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
        count = len({archive.sample_key(member) for member in members})
        if count != self.source.counts[number]:
            told = f"holds {count} of {self.source.counts[number]} samples; remove it"
            raise UserError(told, where=path)
        labels = sum(member.endswith(".cls") for member in members)
        shard = Shard(name=name, count=count, size=fs.size(path), sha256=file_sha256(path))
        return Made(number, shard, labelled=labels == count)

    def _made(self, missing: list[int], devices: Sequence[str], bar: Progress) -> Iterator[Made]:
        """The missing shards, in the order in which they are finished."""
        count = min(len(devices), len(missing))
        parts = [
            Part(numbers=tuple(missing[k::count]), device=devices[k], readers=self.readers)
            for k in range(count)
        ]
        cuda = any(device.startswith("cuda") for device in devices)
        try:
            for told in merged(self.make, parts, start="spawn" if cuda else "fork"):
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
            raise UserError("two shards have this name; take each folder by itself", where=name)
    return names
