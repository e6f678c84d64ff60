"""Pictures to pack, and packing them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import pytest
from conftest import encoded, picture

from lit_restore.data.encode import Bad, Encoding, Packed, pack_items
from lit_restore.data.manifest import Manifest
from lit_restore.data.packing import write_shards
from lit_restore.data.sources import Item, folder_of_images


def write_photos(folder: Path) -> Path:
    """Nine pictures in three formats and two folders."""
    for k in range(9):
        place = folder / ("sea" if k % 2 else "hill side")
        place.mkdir(parents=True, exist_ok=True)
        kind = ("png", "jpg", "webp")[k % 3]
        (place / f"é {k}.x.{kind}").write_bytes(encoded(picture(k), kind))
    return folder


def pack(
    folder: Path,
    out: Path,
    *,
    encoding: Encoding = Encoding(),  # noqa: B008
    max_bad: int = 0,
    workers: int = 1,
) -> Manifest:
    """A folder of pictures into shards of two."""
    return write_shards(
        folder_of_images(folder),
        out,
        per_shard=2,
        encoding=encoding,
        max_bad=max_bad,
        workers=workers,
        progress=False,
    )


def interrupt(folder: Path, out: Path, *, after: int, encoding: Encoding = Encoding()) -> None:  # noqa: B008
    """Pack, with Ctrl-C once `after` pictures are packed."""
    with interrupted(after=after):
        pack(folder, out, encoding=encoding)


@contextmanager
def interrupted(*, after: int) -> Iterator[None]:
    """What is packed inside ends with Ctrl-C once `after` samples are packed."""
    with (
        mock.patch("lit_restore.data.packing.pack_items", _interrupted(after)),
        pytest.raises(KeyboardInterrupt),
    ):
        yield


def _interrupted(after: int) -> Callable[[Sequence[Item], Encoding], list[list[Packed] | Bad]]:
    packed = 0

    def function(items: Sequence[Item], encoding: Encoding) -> list[list[Packed] | Bad]:
        nonlocal packed
        if packed >= after:
            raise KeyboardInterrupt
        packed += len(items)
        return pack_items(items, encoding)

    return function


def contents(folder: Path) -> dict[str, bytes]:
    """File name → bytes."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
