"""What a user may write for a data set → a source of samples."""

from __future__ import annotations

import glob
from pathlib import Path

from lit_restore.data.manifest import read_manifest, refuse_unfinished
from lit_restore.data.reader import PhotographSource, Source, open_shards
from lit_restore.errors import UserError
from lit_restore.io import fs

PHOTOGRAPHS = "photographs"


def open_source(data: str, *, key: str, max_bad: int = 0) -> Source:
    """Open a data set.

    Args:
        data: a folder of shards, a shard, a glob pattern of shards, or "photographs".
        key: the option it was given for, named in error lines.
        max_bad: unreadable shards that may be left out.

    Raises:
        UserError: nothing there, or shards are missing or unreadable.
    """
    if not data.strip():
        raise UserError("is empty; give a folder of shards", where=key)
    if data == PHOTOGRAPHS:
        return PhotographSource()
    if data.startswith("pipe:") or "://" in data:
        raise UserError(f'"{data}" is not a local path; copy the shards here first', where=key)
    path = Path(data).expanduser()
    if fs.is_dir(path):
        return _open_folder(path, key, max_bad)
    if fs.exists(path):
        return open_shards([path])
    matches = sorted(Path(match) for match in glob.glob(str(path)))
    if not matches:
        raise UserError(
            f'no such shard or folder "{data}"; make shards with: lit-restore shards make',
            where=key,
        )
    return open_shards(matches, max_bad=max_bad)


def _open_folder(folder: Path, key: str, max_bad: int) -> Source:
    shards = [path for path in fs.list_dir(folder) if path.suffix == ".tar"]
    digests: dict[str, str] = {}
    refuse_unfinished(folder)
    if fs.exists(folder / "manifest.json"):
        manifest = read_manifest(folder)
        shards = [folder / shard.name for shard in manifest.shards]
        digests = {shard.name: shard.sha256 for shard in manifest.shards}
    if not shards:
        raise UserError(
            f'folder "{folder}" holds no shard (*.tar); make some with: lit-restore shards make',
            where=key,
        )
    source = open_shards(shards, digests=digests, max_bad=max_bad)
    if digests:
        said = {shard.name: shard.count for shard in manifest.shards}
        for shard in source.shards:
            if len(shard.entries) != said[shard.path.name]:
                counts = f"{len(shard.entries)} samples, manifest says {said[shard.path.name]}"
                raise UserError(counts, where=shard.path)
    return source
