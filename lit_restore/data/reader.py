"""Random access to the samples of a set of shards, or of the bundled photographs."""

from __future__ import annotations

import hashlib
import logging
import os
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from lit_restore.data.batch import Sample
from lit_restore.data.decode import Window, decode_image, decode_others
from lit_restore.data.entries import Entry, Span
from lit_restore.data.index import ShardIndex, read_index
from lit_restore.errors import UserError
from lit_restore.io import failpoints, fs, memory

_log = logging.getLogger(__name__)

_OPEN_SHARDS = 64
_NO_IMAGE = np.zeros((0, 0, 3), np.uint8)


class Source(ABC):
    """Samples that can be read one by one, in any order."""

    counts: Sequence[int]
    """Samples per shard."""

    def __len__(self) -> int:
        return sum(self.counts)

    @abstractmethod
    def key(self, index: int) -> str:
        """The sample's key, unique within the source."""

    @abstractmethod
    def where(self, index: int) -> str:
        """The sample as an error line names it."""

    @abstractmethod
    def read(self, index: int, window: Window | None = None) -> Sample:
        """Decode the sample `index` (its position is left 0).

        Args:
            index: which one.
            window: the part of its image that will be looked at; the rest may be undefined.

        Raises:
            UserError: the sample cannot be read.
        """

    @abstractmethod
    def fingerprint(self) -> list[list[str | int]]:
        """Rows that identify the content, one a shard."""


class ShardSource(Source):
    """Samples of webdataset shards, read by byte range with no state but open files.

    Args:
        shards: the shards' indices; their order is part of the data's identity.
        digests: sha256 of each shard where a manifest gave them.
    """

    def __init__(
        self, shards: Sequence[ShardIndex], *, digests: dict[str, str] | None = None
    ) -> None:
        self.shards = list(shards)
        self.counts = [len(shard.entries) for shard in self.shards]
        self.digests = digests or {}
        self.pictures = any({"image", "degraded"} & _fields(shard) for shard in self.shards)
        """Whether samples are pictures; arrays alone otherwise."""
        self.bad_shards: dict[str, str] = {}
        """Shard → why it was left out."""
        self._starts = np.concatenate([[0], np.cumsum(self.counts)])
        self._files: OrderedDict[int, BinaryIO] = OrderedDict()
        self._pid = os.getpid()

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_files": OrderedDict()}

    def _locate(self, index: int) -> tuple[int, Entry]:
        shard = int(np.searchsorted(self._starts, index, side="right")) - 1
        return shard, self.shards[shard].entries[index - int(self._starts[shard])]

    def key(self, index: int) -> str:
        """`shard name/sample key`."""
        shard, entry = self._locate(index)
        return f"{self.shards[shard].path.stem}/{entry.key}"

    def where(self, index: int) -> str:
        """`path of the shard: sample key`."""
        shard, entry = self._locate(index)
        return f"{self.shards[shard].path}: {entry.key}"

    def read(self, index: int, window: Window | None = None) -> Sample:
        """Read and decode all fields of a sample; without an image only where none has one."""
        shard, entry = self._locate(index)
        path = self.shards[shard].path
        where = f"{path}: {entry.key}"
        if "image" not in entry.fields and (self.pictures or "array" not in entry.fields):
            raise UserError("the sample has no image (jpg, png or webp member)", where=where)
        data = {name: self._bytes(shard, span) for name, span in entry.fields.items()}
        # Only what a manifest vouches for was whole when it was packed; a pair is cut on two grids.
        vouched = path.name in self.digests and "degraded" not in data
        image = _NO_IMAGE
        if "image" in data:
            image = decode_image(data["image"], name=where, window=window if vouched else None)
        sample = Sample(f"{path.stem}/{entry.key}", 0, image)
        decode_others(sample, data, name=where)
        return sample

    def _bytes(self, shard: int, span: Span) -> bytes:
        try:
            failpoints.hit("shard.read")
            return fs.pread(self._file(shard), span.size, span.offset)
        except OSError as error:
            reason = f"cannot be read ({error.strerror})"
            raise UserError(reason, where=self.shards[shard].path) from None

    def _file(self, shard: int) -> BinaryIO:
        if self._pid != os.getpid():  # a worker opens files of its own, and does nothing but decode
            self._files, self._pid = OrderedDict(), os.getpid()
            memory.keep_freed()
        if shard not in self._files:
            self._files[shard] = fs.open_read(self.shards[shard].path)
            if len(self._files) > _OPEN_SHARDS:
                self._files.popitem(last=False)[1].close()
        self._files.move_to_end(shard)
        return self._files[shard]

    def fingerprint(self) -> list[list[str | int]]:
        """[name, size, sha256 of the manifest or digest of the index, samples] a shard."""
        return [
            [s.path.name, s.size, self.digests.get(s.path.name, s.digest), len(s.entries)]
            for s in self.shards
        ]


class CachedSource(Source):
    """Another source's samples, the ones read last kept decoded in memory.

    Decoding a whole photograph for one small crop costs as much as a small network's step.

    Args:
        source: what is read.
        megabytes: bound on the decoded images kept by each process, in 10^6 bytes.
    """

    def __init__(self, source: Source, *, megabytes: int) -> None:
        self.source = source
        self.counts = source.counts
        self.limit = megabytes * 10**6
        self._held: OrderedDict[int, Sample] = OrderedDict()
        self._bytes = 0

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_held": OrderedDict(), "_bytes": 0}

    def key(self, index: int) -> str:
        """The source's own key."""
        return self.source.key(index)

    def where(self, index: int) -> str:
        """The source's own name for the sample."""
        return self.source.where(index)

    def read(self, index: int, window: Window | None = None) -> Sample:
        """The sample, whole and shared: its arrays are not to be written to."""
        if index in self._held:
            self._held.move_to_end(index)
            return self._held[index]
        sample = self.source.read(index)
        self._held[index] = sample
        self._bytes += sample.nbytes
        while self._bytes > self.limit and self._held:
            self._bytes -= self._held.popitem(last=False)[1].nbytes
        return sample

    def fingerprint(self) -> list[list[str | int]]:
        """The source's own: a cache changes nothing."""
        return self.source.fingerprint()


class PhotographSource(Source):
    """The three photographs that come with scikit-image: astronaut, coffee, chelsea."""

    NAMES = ("astronaut", "coffee", "chelsea")

    def __init__(self) -> None:
        self.counts = [len(self.NAMES)]

    def key(self, index: int) -> str:
        """The photograph's name."""
        return self.NAMES[index]

    def where(self, index: int) -> str:
        """The photograph's name in scikit-image."""
        return f"skimage.data.{self.NAMES[index]}"

    @cached_property
    def _pixels(self) -> list[npt.NDArray[np.uint8]]:
        import skimage.data

        return [np.asarray(getattr(skimage.data, name)())[..., :3] for name in self.NAMES]

    def read(self, index: int, window: Window | None = None) -> Sample:
        """The photograph at full size, RGB."""
        return Sample(self.key(index), 0, self._pixels[index])

    def fingerprint(self) -> list[list[str | int]]:
        """One row with the hash of all pixels."""
        state = hashlib.sha256()
        for pixels in self._pixels:
            state.update(np.ascontiguousarray(pixels).tobytes())
        return [["photographs", sum(p.size for p in self._pixels), state.hexdigest(), 3]]


def open_shards(
    paths: Sequence[Path], *, digests: dict[str, str] | None = None, max_bad: int = 0
) -> ShardSource:
    """Index shards and check that all are of one kind.

    Args:
        paths: the shards, at least one.
        digests: sha256 by shard name, from a manifest.
        max_bad: unreadable shards that may be left out; they are told and kept in `bad_shards`.

    Raises:
        UserError: more shards are unreadable, none is left, or they hold different fields.
    """
    shards: list[ShardIndex] = []
    bad: dict[str, str] = {}
    for path in paths:
        try:
            shards.append(read_index(path))
        except UserError as error:
            bad[str(path)] = error.message
            if len(bad) > max_bad or len(bad) == len(paths):
                raise
            _log.warning("%s; the shard is left out", error)
    first = _fields(shards[0])
    for shard in shards[1:]:
        if _fields(shard) != first:
            raise UserError(
                f"holds {', '.join(sorted(_fields(shard)))} where {shards[0].path.name} holds "
                f"{', '.join(sorted(first))}; train on shards of one kind",
                where=shard.path,
            )
    source = ShardSource(shards, digests=digests)
    source.bad_shards = bad
    return source


def _fields(shard: ShardIndex) -> frozenset[str]:
    return frozenset(shard.entries.counts())
