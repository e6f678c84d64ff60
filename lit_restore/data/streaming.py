"""Samples that come by in streams: for what cannot be indexed.

The stages are webdataset's, over streams that `io.streams` opens. Which image stands at a position
follows from where the run was started or resumed, its rank and its worker, so it is only
approximately that of an uninterrupted run; crops, turns and noise are functions of the position as
everywhere.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import closing
from pathlib import PurePath
from typing import Any

from torch.utils.data import Dataset, get_worker_info

from lit_restore.data.batch import Refusal, Sample
from lit_restore.data.decode import Window, decode_image, decode_others
from lit_restore.data.index import field_of
from lit_restore.data.locate import local_shards
from lit_restore.data.reader import Source
from lit_restore.data.remote import read_remote_manifest
from lit_restore.data.samples import Augmentation, augment
from lit_restore.errors import UserError
from lit_restore.io import archive, streams, trust
from lit_restore.io.cache import Cache
from lit_restore.io.remote import NETWORK, Network, TransferError
from lit_restore.io.urls import expand, file_name, inside, is_pipe, is_remote, is_shard, public
from lit_restore.seeding import stream_seed

_TRIES = 64


class StreamSource(Source):
    """The names of streams; their samples have no numbers.

    Args:
        names: paths, URLs or ``pipe:`` commands.
    """

    def __init__(self, names: list[str]) -> None:
        self.names = names
        self.counts: list[int] = []

    def key(self, index: int) -> str:
        """Refused."""
        raise UserError("a stream's samples have no numbers", where="data.streaming")

    def where(self, index: int) -> str:
        """The option."""
        return "data.streaming"

    def read(self, index: int, window: Window | None = None) -> Sample:
        """Refused."""
        raise UserError("a stream's samples have no numbers", where="data.streaming")

    def fingerprint(self) -> list[list[str | int]]:
        """The names: nothing is known of what they give."""
        return [[public(name)] for name in self.names]


def open_streams(data: str, *, key: str, cache: Cache) -> StreamSource:
    """The streams that a user names.

    Args:
        data: ``pipe:COMMAND``, URLs (braces allowed), or what is local; a folder stands for its
            shards.
        key: the option it was given for, named in error lines.
        cache: its patience is that of reading a remote manifest.

    Raises:
        UserError: nothing there, or a command where configs are not trusted.
    """
    if not data.strip():
        raise UserError("is empty; name shards to stream", where=key)
    if is_pipe(data):
        if not trust.given():
            raise UserError("pipe: runs a shell; --trust_config allows it", where=key)
        return StreamSource(expand(data, key=key))
    if not is_remote(data):
        return StreamSource([str(path) for path in local_shards(data, key=key)])
    urls = expand(data, key=key)
    if len(urls) == 1 and not _is_archive(data):
        manifest = read_remote_manifest(data, cache=cache)
        urls = [inside(data, shard.name) for shard in manifest.shards]
    return StreamSource(urls)


def _is_archive(url: str) -> bool:
    return is_shard(url) or file_name(url).endswith((".tar.gz", ".tgz", ".tar.bz2", ".tar.xz"))


class StreamedSamples(Dataset[Sample | Refusal]):
    """Position → the next sample that comes by, cropped and turned as that position says.

    What cannot be read is skipped and told in `Sample.bad`.

    Args:
        source: the streams.
        augmentation: what is drawn for each sample.
        seed: the run's seed.
        start: the position at which the run was started or resumed.
        rank: this process's rank.
        world: number of ranks.
        buffer: samples shuffled together in memory, as they were stored.
        network: how patient transfers are.
    """

    def __init__(
        self,
        source: StreamSource,
        *,
        augmentation: Augmentation,
        seed: int,
        start: int,
        rank: int,
        world: int,
        buffer: int,
        network: Network = NETWORK,
    ) -> None:
        self.source, self.augmentation, self.network = source, augmentation, network
        self.seed, self.start, self.rank, self.world = seed, start, rank, world
        self.buffer = buffer
        self.trusted = trust.given()  # a worker may be a new interpreter
        self._bad: list[tuple[str, str]] = []
        self._given = 0
        self._end: Refusal | None = None
        self._samples: Iterator[dict[str, Any]] | None = None
        self._pid = os.getpid()

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_samples": None, "_bad": []}

    def __getitem__(self, position: int) -> Sample | Refusal:
        if self._end is not None:
            return self._end
        if self._samples is None or self._pid != os.getpid():
            self._bad, self._pid = [], os.getpid()
            self._samples = iter(self._pipeline())
        for _ in range(_TRIES):
            try:
                found = next(self._samples)
            except UserError as error:
                self._end = Refusal(error.message, error.where)
                return self._end
            where = f"{found['__url__']}: {found['__key__']}"
            try:
                sample = self._decode(found, where)
            except UserError as error:
                self._bad.append((where, error.message))
                continue
            bad, self._bad = self._bad, []
            sample.position, sample.bad = position, tuple(bad)
            try:
                return augment(sample, self.augmentation, self.seed)
            except UserError as error:
                return Refusal(error.message, where)
        name, reason = self._bad[0]
        return Refusal(f"{reason}; nor can {_TRIES - 1} after it be read", name, unreadable=True)

    def _decode(self, found: dict[str, Any], where: str) -> Sample:
        data: dict[str, bytes] = {}
        for extension, value in found.items():
            field = None if extension.startswith("__") else field_of(extension)
            if field is not None:
                data[field] = value
        if "image" not in data:
            raise UserError("the sample has no image (jpg, png or webp member)", where=where)
        key = f"{found['__stem__']}/{found['__key__']}"
        sample = Sample(key, 0, decode_image(data["image"], name=where))
        decode_others(sample, data, name=where)
        return sample

    # The pipeline --------------------------------------------------------------------------------

    def _pipeline(self) -> Any:
        import webdataset as wds

        info = get_worker_info()
        worker, workers = (0, 1) if info is None else (info.id, info.num_workers)
        number, consumers = self.rank * workers + worker, self.world * workers
        state = stream_seed(self.seed, f"{self.start}/{number}", "streams")
        draw = random.Random(state)
        names = list(self.source.names)
        if len(names) >= consumers:
            names = names[number::consumers]
        return wds.DataPipeline(
            lambda: self._endless(names, draw),
            self._members,
            lambda data: wds.tariterators.group_by_keys(data, handler=self._note_sample),
            self._with_stem,
            wds.shuffle(self.buffer, initial=self.buffer, rng=draw),
        )

    def _endless(self, names: list[str], draw: random.Random) -> Iterator[str]:
        """Every stream once a pass, each pass in another order."""
        while True:
            before = self._given
            yield from draw.sample(names, len(names))
            if self._given == before:
                name, reason = (self._bad or [("data.train", "the streams are empty")])[0]
                raise UserError(f"{reason}; no other stream gives a sample either", where=name)

    def _members(self, names: Iterator[str]) -> Iterator[dict[str, Any]]:
        """Files as webdataset has them; a sample that a fault cuts is marked bad."""
        for name in names:
            last = ""
            shown = public(name)
            try:
                with closing(
                    streams.open_body(name, trusted=self.trusted, network=self.network)
                ) as body:
                    for last, data in streams.members(body):
                        yield {"fname": last, "data": data, "__url__": shown}
            except (UserError, TransferError) as error:
                self._bad.append((shown, getattr(error, "message", None) or str(error)))
                key = archive.sample_key(last)
                if key is not None:
                    yield {"fname": f"{key}.__bad__", "data": True, "__url__": shown}
            yield {}

    def _note_sample(self, error: Exception) -> bool:
        self._bad.append(("data.train", f"a sample is skipped: {error.args[0]}"))
        return True

    def _with_stem(self, samples: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        for sample in samples:
            self._given += 1
            url = str(sample["__url__"])
            name = file_name(url) if is_remote(url) else url
            stem = "pipe" if is_pipe(url) else PurePath(name).stem
            yield {**sample, "__stem__": stem}
