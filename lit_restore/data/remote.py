"""Shards that lie elsewhere: found by URL, kept in the cache, read as local ones.

With a `manifest.json` beside them the counts are known without a download: `RemoteSource` fetches a
shard when it is first read, or a window earlier. Without one, all are fetched when the run is set
up and read like local shards.
"""

from __future__ import annotations

import logging
import os
from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lit_restore.data.ahead import Ahead
from lit_restore.data.batch import Sample
from lit_restore.data.decode import Window
from lit_restore.data.manifest import MANIFEST, Manifest, Shard, parse_manifest
from lit_restore.data.reader import ShardSource, Source, open_shards
from lit_restore.errors import UserError
from lit_restore.io import fs
from lit_restore.io.cache import Cache, Pin, Remote
from lit_restore.io.remote import fetch_bytes
from lit_restore.io.urls import expand, inside, is_shard, public
from lit_restore.io.wording import human_size

_log = logging.getLogger(__name__)

_MANIFEST_LIMIT = 64 << 20
_AT_ONCE = 4


@dataclass(frozen=True)
class _Opened:
    source: ShardSource
    pin: Pin


class RemoteSource(Source):
    """The samples of a folder elsewhere whose manifest is known; shards come when needed.

    Args:
        folder: URL of the folder.
        shards: what its manifest says of each.
        cache: where shards are kept.
        window: shards shuffled together, and kept open and so unevictable by each process; None
            where samples are read in order, which fetches the next shard ahead.
    """

    def __init__(
        self,
        folder: str,
        shards: Sequence[Shard],
        *,
        cache: Cache,
        window: int | None,
    ) -> None:
        self.shards = list(shards)
        self.counts = [shard.count for shard in self.shards]
        self.remotes = [
            Remote(url=inside(folder, shard.name), size=shard.size, sha256=shard.sha256)
            for shard in self.shards
        ]
        self.cache = cache
        self.open_limit = max(1, window or 1)
        self.in_order = window is None
        self.bad_shards: dict[str, str] = {}
        """Empty: nothing of a shard is known before it is fetched."""
        self._starts = np.concatenate([[0], np.cumsum(self.counts)])
        self._begin()

    def _begin(self) -> None:
        self._pid = os.getpid()
        self._opened: OrderedDict[int, _Opened] = OrderedDict()
        self._failed: dict[int, str] = {}
        self._ahead = Ahead(self._fetch_ahead)

    def __getstate__(self) -> dict[str, object]:
        kept = ("_opened", "_failed", "_ahead")
        return {name: value for name, value in self.__dict__.items() if name not in kept}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._begin()

    def want(self, shards: Sequence[int]) -> None:
        """Fetch these in the background, as many of the first as the cache holds."""
        self._own_process()
        room, fitting = self.cache.limit, []
        for shard in dict.fromkeys(shards):
            room -= self.shards[shard].size
            if room < 0:
                break
            fitting.append(shard)
        missing = [s for s in fitting if s not in self._opened and s not in self._failed]
        self._ahead.want(missing)

    def key(self, index: int) -> str:
        """`shard name/sample key`; fetches the shard where it must."""
        shard, local = self._locate(index)
        return self._open(shard).key(local)

    def where(self, index: int) -> str:
        """`URL: sample key`, or its number while the shard is not here."""
        shard, local = self._locate(index)
        opened = self._opened.get(shard)
        name = f"sample {local}"
        if opened is not None:
            name = opened.source.key(local).partition("/")[2]
        return f"{public(self.remotes[shard].url)}: {name}"

    def read(self, index: int, window: Window | None = None) -> Sample:
        """Read and decode a sample; fetches its shard where it must.

        Raises:
            UserError: it cannot be read, or its shard could not be had (that is tried once by
                each process).
        """
        shard, local = self._locate(index)
        source = self._open(shard)
        try:
            return source.read(local, window)
        except UserError as error:
            raise UserError(error.message, where=self.where(index)) from None

    def fingerprint(self) -> list[list[str | int]]:
        """[name, size, sha256, samples] a shard: that of the same folder on a local disk."""
        return [[s.name, s.size, s.sha256, s.count] for s in self.shards]

    def _locate(self, index: int) -> tuple[int, int]:
        shard = int(np.searchsorted(self._starts, index, side="right")) - 1
        return shard, index - int(self._starts[shard])

    def _own_process(self) -> None:
        """A forked worker has no thread, and leaves the pins to its parent."""
        if self._pid != os.getpid():
            self._begin()

    def _open(self, shard: int) -> ShardSource:
        self._own_process()
        if shard not in self._opened:
            if shard in self._failed:
                raise UserError(self._failed[shard], where=public(self.remotes[shard].url))
            while len(self._opened) >= self.open_limit:
                self._opened.popitem(last=False)[1].pin.close()
            try:
                self._opened[shard] = self._open_now(shard)
            except UserError as error:
                self._failed[shard] = error.message
                raise
            if self.in_order and shard + 1 < len(self.shards):
                self.want([shard + 1])
        self._opened.move_to_end(shard)
        return self._opened[shard].source

    def _open_now(self, shard: int) -> _Opened:
        said, remote = self.shards[shard], self.remotes[shard]
        pin = self._ahead.take(shard) or self.cache.fetch(remote)
        assert pin is not None  # it waits
        try:
            source = open_shards([pin.path], digests={said.name: said.sha256})
        except UserError as error:
            raise UserError(error.message, where=public(remote.url)) from None
        if source.counts[0] != said.count:
            counts = f"{source.counts[0]} samples, manifest says {said.count}"
            raise UserError(counts, where=public(remote.url))
        return _Opened(source, pin)

    def _fetch_ahead(self, shard: int) -> Pin | None:
        try:
            return self.cache.fetch(self.remotes[shard], wait=False)
        except Exception as error:  # the reader tries again when it comes to the shard
            _log.info("%s: not fetched ahead: %s", public(self.remotes[shard].url), error)
        return None


class FetchedSource(Source):
    """Shards that were fetched as a whole, under the names of their URLs.

    Args:
        source: the cached files.
        pins: keep them from eviction for as long as this lives.
        urls: cached file → URL.
    """

    def __init__(self, source: ShardSource, pins: Sequence[Pin], urls: Mapping[str, str]) -> None:
        self.source, self.pins, self.urls = source, list(pins), dict(urls)
        self.counts = source.counts
        self.bad_shards = {renamed(path, urls): why for path, why in source.bad_shards.items()}
        """URL → why it was left out."""

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "pins": []}  # they are the parent's, which outlives its workers

    def key(self, index: int) -> str:
        """`shard name/sample key`."""
        return self.source.key(index)

    def where(self, index: int) -> str:
        """`URL: sample key`."""
        return renamed(self.source.where(index), self.urls)

    def read(self, index: int, window: Window | None = None) -> Sample:
        """Read and decode a sample."""
        try:
            return self.source.read(index, window)
        except UserError as error:
            raise UserError(error.message, where=self.where(index)) from None

    def fingerprint(self) -> list[list[str | int]]:
        """As the cached files'."""
        return self.source.fingerprint()


def renamed(text: str, urls: Mapping[str, str]) -> str:
    """`text` with the cached file that it begins with replaced by its URL."""
    for path, url in urls.items():
        if text.startswith(path):
            return url + text.removeprefix(path)
    return text


def read_remote_manifest(folder: str, *, cache: Cache) -> Manifest:
    """The manifest in a folder elsewhere; `UserError` where there is none."""
    url = inside(folder, MANIFEST)
    try:
        text = fetch_bytes(url, limit=_MANIFEST_LIMIT, network=cache.network).decode()
    except UnicodeDecodeError:
        raise UserError("is not UTF-8", where=public(url)) from None
    except UserError as error:
        if not error.message.startswith("not there"):
            raise
        raise UserError(
            f"{error.message}; name a folder that shards make filled, or shards: "
            ".../train-{000..099}.tar",
            where=public(url),
        ) from None
    return parse_manifest(text, where=public(url))


def open_remote(
    data: str,
    *,
    key: str,
    cache: Cache,
    max_bad: int = 0,
    window: int | None = None,
    without: Collection[str] = (),
) -> Source:
    """Open shards by URL.

    Args:
        data: URL of a folder with a manifest, or of one or (by braces) several ``.tar``.
        key: the option it was given for, named in error lines.
        cache: where shards are kept.
        max_bad: unreadable shards that may be left out; only where there is no manifest.
        window: shards shuffled together, which the cache must hold at once; None for in order.
        without: URLs of shards to leave out.

    Raises:
        UserError: nothing there, or unreadable, or too large for the cache.
    """
    urls = expand(data, key=key)
    if all(is_shard(url) for url in urls):
        return _open_listed(urls, key=key, cache=cache, max_bad=max_bad, without=without)
    if len(urls) > 1:
        raise UserError("braces stand for shards: each URL must end in .tar", where=key)
    manifest = read_remote_manifest(data, cache=cache)
    shards = [s for s in manifest.shards if public(inside(data, s.name)) not in without]
    if not shards:
        raise UserError("no readable shard is left", where=public(data))
    _check_room([shard.size for shard in shards], window or 1, cache.limit)
    return RemoteSource(data, shards, cache=cache, window=window)


def _check_room(sizes: Sequence[int], window: int, limit: int) -> None:
    """A window that does not fit would be fetched again for every sample."""
    largest = sorted(sizes, reverse=True)[:window]
    if sum(largest) > limit:
        raise UserError(
            f"{human_size(limit)} is less than the {len(largest)} shards of a window "
            f"({human_size(sum(largest))}); raise it, or lower data.shuffle_window",
            where="data.cache_gb",
        )


def _open_listed(
    urls: Sequence[str], *, key: str, cache: Cache, max_bad: int, without: Collection[str]
) -> Source:
    remotes = [Remote(url=url) for url in urls if public(url) not in without]
    if not remotes:
        raise UserError("no readable shard is left", where=key)
    pins, bad = _fetch_all(remotes, cache, max_bad)
    names = {str(pin.path): public(url) for url, pin in pins.items()}
    try:
        source = open_shards([Path(path) for path in names], max_bad=max_bad - len(bad))
    except UserError as error:
        raise UserError(error.message, where=renamed(error.where or key, names)) from None
    fetched = FetchedSource(source, list(pins.values()), names)
    fetched.bad_shards |= bad
    return fetched


def _fetch_all(
    remotes: Sequence[Remote], cache: Cache, max_bad: int
) -> tuple[dict[str, Pin], dict[str, str]]:
    """(URL → pin, URL → why it was left out), in the order given."""
    pins: dict[str, Pin] = {}
    bad: dict[str, str] = {}
    total = 0
    pool = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="fetch")
    try:
        for remote, task in [(r, pool.submit(cache.fetch, r)) for r in remotes]:
            try:
                pin = task.result()
            except UserError as error:
                bad[public(remote.url)] = error.message
                if len(bad) > max_bad or len(bad) == len(remotes):
                    raise
                _log.warning("%s; the shard is left out", error)
                continue
            assert pin is not None  # it waits
            pins[remote.url] = pin
            total += fs.size(pin.path)
            if total > cache.limit:
                raise UserError(
                    f"{human_size(cache.limit)} is less than the shards take; raise it, or put "
                    "their manifest.json beside them (lit-restore shards make writes it)",
                    where="data.cache_gb",
                )
    finally:
        pool.shutdown(cancel_futures=True)
    return pins, bad
