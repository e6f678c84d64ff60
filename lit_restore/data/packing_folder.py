"""A folder of shards in the making: its plan, its lock, its drafts, and whether it is finished."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from webdataset import TarWriter

from lit_restore import __version__
from lit_restore.data.encode import Packed
from lit_restore.data.manifest import MANIFEST, PLAN, Manifest, Shard, read_manifest
from lit_restore.errors import UserError
from lit_restore.io import fs
from lit_restore.io.lock import RunLock

MADE_BY = f"lit_restore {__version__}"
"""What a manifest says of its maker."""

_PLAN_LIMIT = 1 << 20


@dataclass(frozen=True, kw_only=True)
class PackingPlan:
    """What identifies a packing: equal plans give equal bytes."""

    plan: str
    """Digest of the samples and the options."""
    stamp: str
    """Digest of what else must be the same to go on: the source files' times of change, say."""
    made_by: str
    """`MADE_BY`."""

    def text(self) -> str:
        """As it stands in the folder."""
        return json.dumps(asdict(self), indent=1) + "\n"


def finished(folder: Path, plan: PackingPlan) -> Manifest | None:
    """The manifest where this plan is done; None where it is to be made or gone on with.

    Raises:
        UserError: the folder holds something else.
    """
    if not fs.is_dir(folder):
        return None
    if fs.exists(folder / MANIFEST):
        manifest = read_manifest(folder)
        if manifest.plan == plan.plan:
            return manifest
        raise UserError(
            "holds shards of other input or options; give another folder, or remove this one",
            where=folder,
        )
    shards = [path.name for path in fs.list_dir(folder) if path.suffix == ".tar"]
    if not shards:
        return None
    if not fs.exists(folder / PLAN):
        raise UserError(
            f"holds {shards[0]}, not made by this command; give another folder", where=folder
        )
    if fs.read_text(folder / PLAN, limit=_PLAN_LIMIT) != plan.text():
        raise UserError(
            "holds unfinished shards of other input or options; give another folder, "
            "or remove this one",
            where=folder,
        )
    return None


def locked(folder: Path, *, wait: bool) -> RunLock:
    """The lock of a folder, which is made if need be.

    Args:
        folder: of the shards.
        wait: until a process that has it ends; refused otherwise.

    Raises:
        UserError: in use, or cannot be written.
    """
    while True:
        try:
            return RunLock(folder)
        except UserError as error:
            if not (wait and error.message.startswith("in use")):
                raise
        time.sleep(0.2)


class ShardDraft:
    """A shard under a temporary name until it is whole and on the medium.

    Args:
        path: where it will stand.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.draft = path, fs.temporary(path)
        self.file = fs.HashingFile(self.draft)
        self.dropped = False
        # Fixed owner, mode and time: the same samples give the same bytes, on any machine.
        self.tar = TarWriter(
            self, user="", group="", mode=0o644, mtime=0, encoder=False, format="PAX_FORMAT"
        )

    def write(self, data: bytes) -> int:
        """Called by `TarWriter`, which also flushes its buffer when a dropped draft is freed."""
        return len(data) if self.dropped else self.file.write(data)

    def add(self, samples: Sequence[Packed]) -> int:
        """Append samples; returns how many."""
        for sample in samples:
            self.tar.write({"__key__": sample.key, **sample.fields})
        return len(samples)

    def publish(self, count: int) -> Shard:
        """Finish the archive, flush it and give it its name.

        Args:
            count: samples in it.
        """
        self.tar.close()
        self.file.close()
        fs.rename(self.draft, self.path)
        fs.fsync_dir(self.path.parent)
        return Shard(name=self.path.name, count=count, size=self.file.size, sha256=self.file.sha256)

    def abandon(self) -> None:
        """Leave nothing behind."""
        self.dropped = True
        self.file.drop()
        fs.remove_file(self.draft)
