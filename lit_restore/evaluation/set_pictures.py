"""Sets of pictures to be compared as sets: shards, folders, arrays, what `sample` made."""

from __future__ import annotations

import glob
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lit_restore.data import locate
from lit_restore.data.pixels import channel_axis, row_pixels
from lit_restore.data.reader import Source
from lit_restore.errors import UserError
from lit_restore.evaluation import sources
from lit_restore.evaluation.methods import split_name
from lit_restore.io import arrays, fs
from lit_restore.io.quantise import Pixels, from_pixels, to_uint8
from lit_restore.io.redact import redact
from lit_restore.io.urls import is_pipe, is_remote
from lit_restore.sampling.record import IMAGES, RECORD
from lit_restore.seeding import numpy_generator

_ARRAY = "arr_0"
_MOMENTS = "mu"


@dataclass(frozen=True, kw_only=True)
class PictureSet:
    """Pictures that are read one by one, in any order."""

    name: str
    """Its row of the table."""
    kind: str
    """``shards``, ``pictures``, ``samples`` or ``array``."""
    given: str
    """As typed, without secrets."""
    size: int
    read: Callable[[int], Pixels]
    """Picture k as (H, W, 3), grey ones with three equal channels. Raises `UserError`."""
    where: Callable[[int], str]
    """Picture k as an error line names it."""
    remarks: tuple[str, ...] = ()
    """What a reader of the numbers should know of the set."""

    def draw(self, count: int | None, seed: int) -> list[int]:
        """Which pictures take part, rising: all, or `count` drawn at random, never the first ones.

        The draw is a function of (seed, size, count), so that a set is at distance 0 from itself.

        Raises:
            UserError: there are fewer.
        """
        if count is None or count == self.size:
            return list(range(self.size))
        if count > self.size:
            raise UserError(f"{self.given} holds {self.size}; lower it", where=f"--count {count}")
        generator = numpy_generator(seed, self.size, "evaluation/sets")
        return sorted(generator.choice(self.size, count, replace=False).tolist())


def open_set(text: str, *, option: str, background: str | None = None) -> PictureSet:
    """The set that a user names.

    Args:
        text: ``PATH`` or ``NAME=PATH``: a folder, pattern or URL of shards; a folder of pictures,
            searched to the bottom; a tar of pictures; a folder of `lit-restore sample`; an `.npz`
            of one array `arr_0` (N, H, W, 3) of uint8.
        option: named in error lines.
        background: a colour to lay transparent pictures of folders on.

    Raises:
        UserError: nothing there, or not read.
    """
    name, _ = split_name(text, option=option)
    head, equals, tail = text.partition("=")
    data = tail if equals and "/" not in head else text
    path = Path(data).expanduser()
    if path.suffix.lower() == ".npz" and not is_remote(data):
        return _rows(path, name, redact(data))
    if _is_shards(data, path):
        return _shards(locate.open_source(data, key=option), name, redact(data))
    record = path / RECORD
    if fs.exists(record) and fs.is_dir(path / IMAGES):
        remarks = () if _complete(record) else (f"{name} is not complete; run its command again",)
        items = sources.open_source(str(path / IMAGES), option=option)
        return _pictures(items, name, redact(data), "samples", background, remarks)
    items = sources.open_source(data, option=option)
    return _pictures(items, name, redact(data), "pictures", background)


def _is_shards(data: str, path: Path) -> bool:
    if is_remote(data) or is_pipe(data):
        return True
    if fs.is_dir(path):
        return any(p.suffix == ".tar" or p.name == "manifest.json" for p in fs.list_dir(path))
    return not fs.exists(path) and glob.has_magic(data)


def _shards(source: Source, name: str, given: str) -> PictureSet:
    def read(index: int) -> Pixels:
        pixels = source.read(index).image
        if not pixels.size:
            raise UserError("holds no picture but an array alone", where=source.where(index))
        return pixels

    return PictureSet(
        name=name, kind="shards", given=given, size=len(source), read=read, where=source.where
    )


def _pictures(
    items: list[sources.Item],
    name: str,
    given: str,
    kind: str,
    background: str | None,
    remarks: tuple[str, ...] = (),
) -> PictureSet:
    def read(index: int) -> Pixels:
        pixels = items[index].picture(background).pixels
        eight = pixels.astype(np.uint8, copy=False)
        return _rgb(eight if pixels.dtype == np.uint8 else to_uint8(from_pixels(pixels))[0])

    return PictureSet(
        name=name,
        kind=kind,
        given=given,
        size=len(items),
        read=read,
        where=lambda index: items[index].where,
        remarks=remarks,
    )


def _rows(path: Path, name: str, given: str) -> PictureSet:
    """Rows of `arr_0`, read by byte range; a compressed array is inflated in memory."""
    rows = arrays.locate_rows(path, _ARRAY)
    if rows.dtype != np.uint8:
        raise UserError(f"{rows.dtype} are no levels 0 to 255; save them as uint8", where=path)
    channel_axis(rows.shape[1:], where=str(path))
    head = rows.head

    def read(index: int) -> Pixels:
        begin = rows.offset + index * rows.stride
        if rows.inflated is not None:
            data = rows.inflated[begin : begin + rows.stride]
        else:
            with fs.open_read(path) as file:
                data = fs.pread(file, rows.stride, begin)
        return _rgb(row_pixels(head + data, name=where(index)))

    def where(index: int) -> str:
        return f"{path}: {_ARRAY}[{index}]"

    told = f"the moments ({_MOMENTS}, sigma) stored in {name} are not used, only its {_ARRAY}"
    return PictureSet(
        name=name,
        kind="array",
        given=given,
        size=rows.shape[0],
        read=read,
        where=where,
        remarks=(told,) if _has_moments(path) else (),
    )


def _has_moments(path: Path) -> bool:
    try:
        arrays.locate_rows(path, _MOMENTS)
    except UserError:
        return False
    return True


def _rgb(pixels: Pixels) -> Pixels:
    return pixels if pixels.shape[2] == 3 else np.repeat(pixels, 3, axis=2)


def _complete(record: Path) -> bool:
    try:
        found = json.loads(fs.read_text(record, limit=4 << 30))
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise UserError("is damaged; give the folder of the images themselves", where=record)
    return found.get("complete") is True
