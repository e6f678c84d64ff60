"""Pictures that a command is given, and where its results go."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lit_restore.errors import UserError
from lit_restore.evaluation import given
from lit_restore.io import fs

if TYPE_CHECKING:
    from torch import Tensor

_LONGEST_NAME = 255 - len("tmp--01234567")
"""Bytes of a result's name; while it is written it carries a few more."""


def targets_of(
    sources: Sequence[Path], out: Path | None, ending: str, *, force: bool
) -> dict[Path, Path]:
    """Source → where its result goes; no two to one place.

    Args:
        sources: the pictures.
        out: folder of the results; none for each picture's own.
        ending: takes the place of the picture's extension: ``.denoised.png``.
        force: results may be overwritten.

    Raises:
        UserError: a picture is no file, or a result cannot be where it would be.
    """
    for source in sources:
        _check_source(source)
    targets: dict[Path, Path] = {}
    first: dict[str, Path] = {}
    for source in dict.fromkeys(sources):
        target = (source.parent if out is None else out) / f"{source.stem}{ending}"
        # Two spellings of one folder are one place.
        other = first.setdefault(os.path.realpath(target), source)
        if other != source and os.path.realpath(other) == os.path.realpath(source):
            continue
        if other != source:
            raise UserError(
                f"{other} would be written to the same {target}; rename one, or take them one "
                "by one into an --out each",
                where=source,
            )
        _check_target(target, force=force)
        targets[source] = target
    return targets


def with_channels(image: Tensor, channels: int, source: Path) -> Tensor:
    """A grey picture as three equal channels for a network of colours.

    Raises:
        UserError: a colour picture for a network of grey ones.
    """
    if image.shape[1] == channels:
        return image
    if image.shape[1] == 1:
        return image.expand(-1, channels, -1, -1)
    raise UserError(
        "is a colour picture, the network takes grey ones; convert it to grey, or give a --ckpt "
        "for colour",
        where=source,
    )


def _check_source(source: Path) -> None:
    """Refuse what is no file at all; what is in it shows when its turn comes."""
    if fs.is_dir(source):
        raise UserError(f"is a folder; give its pictures: {source}/*.png", where=source)
    if "*" in source.name and not fs.exists(source):
        raise UserError("no such picture; the pattern matches no file", where=source)
    try:
        fs.open_read(source).close()
    except UserError as error:
        raise given.with_mend(error, "check its name, and the folder you are in") from None


def _check_target(target: Path, *, force: bool) -> None:
    if len(os.fsencode(target.name)) > _LONGEST_NAME:
        raise UserError("is too long a name for a result; rename the picture", where=target)
    if fs.is_dir(target):
        raise UserError("is a folder where the result would be; rename it", where=target)
    if fs.exists(target) and not force:
        raise UserError("exists; --force overwrites it", where=target)
