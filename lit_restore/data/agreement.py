"""All ranks of a run see the same shards, or all end with the same line."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

import torch

from lit_restore.data.reader import PhotographSource, Source
from lit_restore.errors import UserError


@dataclass
class _Found:
    """What one rank found, or why it could not open the data."""

    error: tuple[str, str | None] | None = None
    bad: dict[str, str] = field(default_factory=dict)
    rows: list[list[str | int]] = field(default_factory=list)


def open_agreed(
    opener: Callable[[Collection[str]], Source], *, key: str, max_bad: int
) -> tuple[Source, dict[str, str]]:
    """Open a data set on every rank, without what any of them cannot read.

    Without a process group, or with one rank, it is only opened.

    Args:
        opener: opens the data without the shards named to it.
        key: the option that names the data.
        max_bad: unreadable shards that may be left out, over all ranks together.

    Returns:
        The source, and shard → why it is left out; equal on all ranks.

    Raises:
        UserError: on all ranks, where one cannot open the data, too many shards are unreadable, or
            the ranks see different shards.
    """
    if not _several():
        source = opener(())
        return source, bad_shards(source)
    source_here, parts = _open(opener, ())
    bad: dict[str, str] = {}
    for part in parts:
        bad = {**part.bad, **bad}
    if len(bad) > max_bad:
        shard, why = min(bad.items())
        raise UserError(
            f"{why}; {len(bad)} shards cannot be read by all ranks, data.max_bad_shards allows "
            f"{max_bad}",
            where=shard,
        )
    if any(part.bad.keys() != bad.keys() for part in parts):
        source_here, parts = _open(opener, bad.keys())
    _refuse_different([part.rows for part in parts], key)
    return source_here, dict(sorted(bad.items()))


def bad_shards(source: Source) -> dict[str, str]:
    """Shard → why a source left it out."""
    return dict(getattr(source, "bad_shards", {}))


def _several() -> bool:
    group = torch.distributed
    return group.is_available() and group.is_initialized() and group.get_world_size() > 1


def _open(
    opener: Callable[[Collection[str]], Source], without: Collection[str]
) -> tuple[Source, list[_Found]]:
    """Open here, hear what the others found; all raise what the first of them could not do."""
    source: Source | None = None
    found, fault = _Found(), None
    try:
        source = opener(without)
        rows = [] if isinstance(source, PhotographSource) else source.fingerprint()
        found = _Found(None, bad_shards(source), rows)
    except UserError as error:
        found = _Found((error.message, error.where))
    except Exception as error:  # told to the others, who wait
        found, fault = _Found((f"{type(error).__name__}: {error}", None)), error
    parts: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(parts, found)
    if fault is not None:
        raise fault
    for part in [found, *parts]:
        if part.error is not None:
            message, where = part.error
            raise UserError(message, where=where)
    assert source is not None
    return source, parts


def _refuse_different(rows: list[list[list[str | int]]], key: str) -> None:
    first = rows[0]
    for rank, other in enumerate(rows):
        if other == first:
            continue
        longest = max(len(first), len(other))
        number = next(k for k in range(longest) if first[k : k + 1] != other[k : k + 1])
        shard = (first[number : number + 1] or other[number : number + 1])[0][0]
        raise UserError(
            f"rank {rank} sees other shards than rank 0, first {shard}; give all nodes the same "
            "files",
            where=key,
        )
