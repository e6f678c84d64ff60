"""What shards hold, and whether they hold what they should."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import BinaryIO

from lit_restore.data.decode import decode_array, decode_image, decode_label
from lit_restore.data.entries import Span
from lit_restore.data.index import ShardIndex, read_index
from lit_restore.data.manifest import (
    MANIFEST,
    Manifest,
    Shard,
    file_sha256,
    read_manifest,
    refuse_unfinished,
)
from lit_restore.errors import UserError
from lit_restore.io import arrays, fs, images

_HEAD = 64 << 10
"""Bytes in which most pictures' headers end."""
_HEADERS = 2000
_KEYS = 5


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What `shards inspect` tells."""

    shards: int
    samples: int
    size: int
    """Bytes of all shards."""
    fields: dict[str, int]
    """Field → samples that have it."""
    classes: tuple[str, ...]
    keys: tuple[str, ...]
    """The first keys."""
    headers: int
    """Pictures and arrays whose header was read for what follows, spread evenly over all."""
    formats: dict[str, int]
    """"JPEG 8 bits x 3" → pictures, "float16 4x32x32" → arrays."""
    widths: tuple[int, int, int]
    """Smallest, median, largest picture; zeros without pictures."""
    heights: tuple[int, int, int]


def shards_of(path: Path) -> tuple[list[Path], Manifest | None]:
    """The shards of a folder (in its manifest's order), or the one shard that `path` is.

    Raises:
        UserError: none there, unfinished, or shards missing or cut.
    """
    if not fs.is_dir(path):
        fs.size(path)
        return [path], None
    if fs.exists(path / MANIFEST):
        manifest = read_manifest(path)
        return [path / shard.name for shard in manifest.shards], manifest
    refuse_unfinished(path)
    found = [child for child in fs.list_dir(path) if child.suffix == ".tar"]
    if not found:
        raise UserError("holds no shard (*.tar)", where=path)
    return found, None


def summarise(path: Path) -> Summary:
    """Counts, fields, sizes, and formats and resolutions from the pictures' headers.

    Raises:
        UserError: a shard or a header cannot be read.
    """
    paths, manifest = shards_of(path)
    shards = [read_index(shard) for shard in paths]
    found = list(_some_headers(shards))
    headers = [header for header in found if not isinstance(header, str)]
    kinds = Counter(
        h if isinstance(h, str) else f"{h.format} {h.bits} bits x {h.channels}" for h in found
    )
    fields: Counter[str] = Counter()
    for shard in shards:
        fields.update(shard.entries.counts())
    return Summary(
        shards=len(shards),
        samples=sum(len(shard.entries) for shard in shards),
        size=sum(shard.size for shard in shards),
        fields=dict(fields),
        classes=manifest.classes if manifest else (),
        keys=tuple(islice((e.key for shard in shards for e in shard.entries), _KEYS)),
        headers=len(found),
        formats=dict(kinds.most_common()),
        widths=_spread([header.width for header in headers]),
        heights=_spread([header.height for header in headers]),
    )


def verify(path: Path, *, decode: bool) -> tuple[int, list[UserError]]:
    """Check hashes, counts and fields, and with `decode` every member.

    Args:
        path: a folder of shards, or a shard.
        decode: also decode all pictures, labels and arrays.

    Returns:
        The number of samples read and all that is wrong.

    Raises:
        UserError: the manifest cannot be read, or there are no shards.
    """
    if fs.is_dir(path) and fs.exists(path / MANIFEST):
        manifest: Manifest | None = read_manifest(path, check_files=False)
    else:
        manifest = None
    expected: dict[Path, Shard | None] = (
        {path / shard.name: shard for shard in manifest.shards}
        if manifest is not None
        else dict.fromkeys(shards_of(path)[0])
    )
    wrong: list[UserError] = []
    count = 0
    for shard, entry in expected.items():
        try:
            if entry is not None and file_sha256(shard) != entry.sha256:
                wrong.append(UserError("sha256 differs from the manifest", where=shard))
            index = read_index(shard)
        except UserError as error:
            wrong.append(error)
            continue
        count += len(index.entries)
        if entry is not None and len(index.entries) != entry.count:
            said = f"{len(index.entries)} samples, manifest says {entry.count}"
            wrong.append(UserError(said, where=shard))
        wrong += _wrong_members(index, manifest, decode=decode)
    return count, wrong


def _wrong_members(
    shard: ShardIndex, manifest: Manifest | None, *, decode: bool
) -> Iterator[UserError]:
    fields = set(manifest.fields) if manifest else set(shard.entries[0].fields)
    with fs.open_read(shard.path) as file:
        for entry in shard.entries:
            where = f"{shard.path}: {entry.key}"
            if set(entry.fields) != fields:
                has, wanted = (", ".join(sorted(names)) for names in (entry.fields, fields))
                yield UserError(f"has {has}, not {wanted}", where=where)
            for span in entry.fields.values() if decode else ():
                try:
                    _decode(fs.pread(file, span.size, span.offset), span, where)
                except UserError as error:
                    yield error


def _decode(data: bytes, span: Span, where: str) -> None:
    if span.kind == "cls":
        decode_label(data, name=where)
    elif span.kind == "npy":
        decode_array(data, name=where)
    else:
        decode_image(data, name=where)


def _some_headers(shards: Sequence[ShardIndex]) -> Iterator[images.ImageHeader | str]:
    """Headers of up to `_HEADERS` samples, spread evenly; of arrays what they are, in words."""
    step = -(-sum(len(shard.entries) for shard in shards) // _HEADERS)
    first = 0
    for shard in shards:
        with fs.open_read(shard.path) as file:
            for entry in shard.entries[-first % step :: step]:
                where = f"{shard.path}: {entry.key}"
                for name in sorted({"image", "degraded", "restored"} & entry.fields.keys()):
                    yield _header(file, entry.fields[name], where)
                if "array" in entry.fields:
                    span = entry.fields["array"]
                    head = fs.pread(file, min(span.size, _HEAD), span.offset)
                    yield arrays.describe_npy(head, name=where)
        first += len(shard.entries)


def _header(file: BinaryIO, span: Span, where: str) -> images.ImageHeader:
    try:
        return images.sniff(fs.pread(file, min(span.size, _HEAD), span.offset), name=where)
    except UserError:  # a long preview or colour profile comes first
        return images.sniff(fs.pread(file, span.size, span.offset), name=where)


def _spread(values: Sequence[int]) -> tuple[int, int, int]:
    ordered = sorted(values) or [0]
    return ordered[0], ordered[len(ordered) // 2], ordered[-1]
