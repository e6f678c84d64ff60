"""Ranks that see different shards agree on what all can read, or end with the same line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest
import torch
from support_fork import run_ranks

from lit_restore.data import locate
from lit_restore.data.agreement import open_agreed
from lit_restore.data.module import ShardDataModule
from lit_restore.data.reader import ShardSource, open_shards
from lit_restore.errors import UserError


def on_two_ranks(tmp_path: Path, function: Callable[[int], object]) -> list[object]:
    """What each rank returns, or the line it ends with."""

    def one(rank: int) -> int:
        torch.distributed.init_process_group("gloo")
        try:
            found = function(rank)
        except UserError as error:
            found = str(error)
        (tmp_path / f"found-{rank}").write_text(json.dumps(found))
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
        return 0

    codes = run_ranks(one, 2, output=tmp_path / "log", seconds=60)
    assert codes == [0, 0], (tmp_path / "log.0").read_text() + (tmp_path / "log.1").read_text()
    return [json.loads((tmp_path / f"found-{rank}").read_text()) for rank in range(2)]


def blind(rank: int, unreadable: dict[int, list[str]]) -> mock._patch[object]:
    """`open_shards` for a rank whose disk has lost some shards."""

    def opens(paths: list[Path], **options: object) -> ShardSource:
        lost = [path for path in paths if path.name in unreadable.get(rank, [])]
        source = open_shards([path for path in paths if path not in lost], **options)  # type: ignore[arg-type]
        source.bad_shards |= {str(path): "cannot be read (Input/output error)" for path in lost}
        return source

    return mock.patch.object(locate, "open_shards", opens)


def setup(folder: Path, *, max_bad_shards: int) -> list[object]:
    data = ShardDataModule(
        train=str(folder), val=None, crop=8, total_samples=16, max_bad_shards=max_bad_shards
    )
    data.setup("fit")
    assert data.bad is not None
    return [list(data.sources["train"].counts), sorted(Path(s).name for s in data.bad.shards)]


def test_all_ranks_leave_out_what_any_cannot_read(
    tmp_path: Path, make_shards: Callable[..., Path]
) -> None:
    folder = make_shards([3, 4, 2, 5])

    def rank_of(rank: int) -> object:
        lost = {0: ["train-0001.tar"], 1: ["train-0003.tar"]}
        with blind(rank, lost):
            return setup(folder, max_bad_shards=2)

    both = on_two_ranks(tmp_path, rank_of)
    assert both == [[[3, 2], ["train-0001.tar", "train-0003.tar"]]] * 2


def test_without_agreement_the_ranks_would_see_different_orders(
    tmp_path: Path, make_shards: Callable[..., Path]
) -> None:
    """The negative control: each rank alone is content with what it has."""
    folder = make_shards([3, 4, 2, 5])
    counts = []
    for rank in range(2):
        with blind(rank, {0: ["train-0001.tar"], 1: ["train-0003.tar"]}):
            counts.append(setup(folder, max_bad_shards=2)[0])
    assert counts[0] != counts[1]


def test_more_than_allowed_in_all_is_the_same_line_everywhere(
    tmp_path: Path, make_shards: Callable[..., Path]
) -> None:
    folder = make_shards([3, 4, 2])

    def rank_of(rank: int) -> object:
        with blind(rank, {0: ["train-0001.tar"], 1: ["train-0002.tar"]}):
            return setup(folder, max_bad_shards=1)

    one, other = on_two_ranks(tmp_path, rank_of)
    assert one == other
    assert "2 shards cannot be read by all ranks, data.max_bad_shards allows 1" in str(one)


def test_a_rank_that_cannot_open_the_data_ends_all(
    tmp_path: Path, make_shards: Callable[..., Path]
) -> None:
    folder = make_shards([3])
    one, other = on_two_ranks(
        tmp_path, lambda rank: setup(folder if rank else tmp_path / "nowhere", max_bad_shards=0)
    )
    assert one == other
    assert "no such shard" in str(one)


def test_ranks_with_other_files_are_refused(
    tmp_path: Path, make_shards: Callable[..., Path]
) -> None:
    folders = [make_shards([3, 4]), make_shards([3, 4], name="other", size=44)]
    first = (folders[0] / "train-0000.tar").read_bytes()
    (folders[1] / "train-0000.tar").write_bytes(first)
    one, other = on_two_ranks(tmp_path, lambda rank: setup(folders[rank], max_bad_shards=0))
    assert one == other
    assert "data.train: rank 1 sees other shards than rank 0, first train-0001.tar" in str(one)


def test_one_process_only_opens(make_shards: Callable[..., Path]) -> None:
    folder = make_shards([3])
    source, bad = open_agreed(
        lambda without: open_shards(sorted(folder.glob("*.tar"))), key="data.train", max_bad=0
    )
    assert list(source.counts) == [3]
    assert bad == {}
    with pytest.raises(UserError):
        setup(folder / "nowhere", max_bad_shards=0)
