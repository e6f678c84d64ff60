"""What a user may write for a data set → a source of samples."""

from __future__ import annotations

import glob
from collections.abc import Collection
from pathlib import Path

from lit_restore.data.manifest import read_manifest, refuse_unfinished
from lit_restore.data.reader import PhotographSource, Source, open_shards
from lit_restore.data.remote import open_remote
from lit_restore.errors import UserError
from lit_restore.io import fs
from lit_restore.io.cache import Cache, default_folder
from lit_restore.io.urls import is_pipe, is_remote

PHOTOGRAPHS = "photographs"
CACHE_BYTES = 50 * 10**9
"""What the cache of remote shards holds where nothing else is said."""


def open_source(
    data: str,
    *,
    key: str,
    max_bad: int = 0,
    window: int | None = None,
    cache: Cache | None = None,
    without: Collection[str] = (),
) -> Source:
    """Open a data set.

    Args:
        data: a folder of shards, a shard, a glob pattern of shards, "photographs", or the URL of a
            folder with a manifest, of a shard, or of several (``train-{000..099}.tar``).
        key: the option it was given for, named in error lines.
        max_bad: unreadable shards that may be left out.
        window: shards shuffled together; a cache must hold as many. None: read in order.
        cache: where remote shards are kept; none for the default.
        without: shards (paths or URLs as in `bad_shards`) to leave out.

    Raises:
        UserError: nothing there, or shards are missing or unreadable.
    """
    if not data.strip():
        raise UserError("is empty; give a folder of shards", where=key)
    if data == PHOTOGRAPHS:
        return PhotographSource()
    if is_pipe(data):
        raise UserError(
            "pipe: can only be streamed, as training data, with data.streaming: true", where=key
        )
    if is_remote(data):
        if cache is None:
            cache = Cache(default_folder(), limit=CACHE_BYTES)
        return open_remote(
            data, key=key, cache=cache, max_bad=max_bad, window=window, without=without
        )
    path = Path(data).expanduser()
    if fs.is_dir(path):
        return _open_folder(path, key, max_bad, without)
    return open_shards(_kept(local_shards(data, key=key), without), max_bad=max_bad)


def local_shards(data: str, *, key: str) -> list[Path]:
    """The shards of a local folder (as its manifest names them), file or glob pattern.

    Raises:
        UserError: there is none.
    """
    path = Path(data).expanduser()
    if fs.is_dir(path):
        return _in_folder(path, key)[0]
    if fs.exists(path):
        return [path]
    matches = sorted(Path(match) for match in glob.glob(str(path)))
    if not matches:
        raise UserError(
            f'no such shard or folder "{data}"; make shards with: lit-restore shards make',
            where=key,
        )
    return matches


def _kept(paths: list[Path], without: Collection[str]) -> list[Path]:
    kept = [path for path in paths if str(path) not in without]
    if not kept:
        raise UserError("no readable shard is left", where=paths[0].parent)
    return kept


def _in_folder(folder: Path, key: str) -> tuple[list[Path], dict[str, str], dict[str, int]]:
    """(shards, their sha256 and their counts by name, where a manifest says so)."""
    shards = [path for path in fs.list_dir(folder) if path.suffix == ".tar"]
    digests: dict[str, str] = {}
    counts: dict[str, int] = {}
    refuse_unfinished(folder)
    if fs.exists(folder / "manifest.json"):
        manifest = read_manifest(folder)
        shards = [folder / shard.name for shard in manifest.shards]
        digests = {shard.name: shard.sha256 for shard in manifest.shards}
        counts = {shard.name: shard.count for shard in manifest.shards}
    if not shards:
        raise UserError(
            f'folder "{folder}" holds no shard (*.tar); make some with: lit-restore shards make',
            where=key,
        )
    return shards, digests, counts


def _open_folder(folder: Path, key: str, max_bad: int, without: Collection[str]) -> Source:
    shards, digests, said = _in_folder(folder, key)
    source = open_shards(_kept(shards, without), digests=digests, max_bad=max_bad)
    for shard, count in zip(source.shards, source.counts, strict=True):
        if count != said.get(shard.path.name, count):
            counts = f"{count} samples, manifest says {said[shard.path.name]}"
            raise UserError(counts, where=shard.path)
    return source
