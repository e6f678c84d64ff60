"""Remote shards: the same samples as from the local disk, or one line."""

from __future__ import annotations

import gc
import hashlib
import itertools
import json
import pickle
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import write_tar
from support_http import FAULTS, Server, hasty, html, serving, short, status
from support_runs import rows, train, write_recipe

from lit_restore.data.ahead import Ahead, FollowedOrder
from lit_restore.data.locate import open_source
from lit_restore.data.manifest import Manifest, Shard, manifest_text
from lit_restore.data.module import ShardDataModule
from lit_restore.data.order import Order
from lit_restore.data.reader import ShardSource, Source
from lit_restore.data.remote import RemoteSource
from lit_restore.errors import UserError
from lit_restore.io.cache import Cache, Pin


def write_manifest(folder: Path, counts: list[int]) -> None:
    shards = []
    for path, count in zip(sorted(folder.glob("*.tar")), counts, strict=True):
        data = path.read_bytes()
        digest = hashlib.sha256(data).hexdigest()
        shards.append(Shard(name=path.name, count=count, size=len(data), sha256=digest))
    manifest = Manifest(
        fields=("image",),
        count=sum(counts),
        classes=(),
        shards=tuple(shards),
        plan="x",
        made_by="t",
    )
    (folder / "manifest.json").write_text(manifest_text(manifest))


COUNTS = [3, 4, 2, 3, 3]


@pytest.fixture
def folder(make_shards: Callable[..., Path]) -> Path:
    made = make_shards(COUNTS)
    write_manifest(made, COUNTS)
    return made


@pytest.fixture
def server(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with serving(folder) as state:
        yield state


def cache_at(tmp_path: Path, *, limit: int = 1 << 30) -> Cache:
    return Cache(tmp_path / "cache", limit=limit, network=hasty())


def assert_same(one: Source, other: Source) -> None:
    assert one.fingerprint() == other.fingerprint()
    assert list(one.counts) == list(other.counts)
    for index in range(len(one)):
        assert one.key(index) == other.key(index)
        np.testing.assert_array_equal(one.read(index).image, other.read(index).image)


def local(folder: Path) -> ShardSource:
    source = open_source(str(folder), key="data.train")
    assert isinstance(source, ShardSource)
    return source


def remote(server: Server, cache: Cache, *, window: int = 2) -> RemoteSource:
    source = open_source(server.url, key="data.train", cache=cache, window=window)
    assert isinstance(source, RemoteSource)
    return source


@pytest.mark.parametrize("fault", FAULTS)
def test_with_a_manifest_nothing_is_fetched_before_it_is_read(
    server: Server, folder: Path, tmp_path: Path, fault: str
) -> None:
    source = remote(server, cache_at(tmp_path))
    assert server.requests == ["/manifest.json"]
    server.faults["/train-0001.tar"] = list(FAULTS[fault])
    assert_same(source, local(folder))


def test_a_sound_run_asks_once_for_each_file(server: Server, folder: Path, tmp_path: Path) -> None:
    assert_same(remote(server, cache_at(tmp_path)), local(folder))
    assert sorted(server.requests) == sorted(
        ["/manifest.json", *(f"/{path.name}" for path in folder.glob("*.tar"))]
    )


@pytest.mark.parametrize("protocol", ["file", "memory"])
@pytest.mark.parametrize("named", ["folder", "braces"])
def test_fsspec_gives_the_same_samples(
    folder: Path, tmp_path: Path, protocol: str, named: str
) -> None:
    import fsspec

    url = f"file://{folder}"
    if protocol == "memory":
        url = "memory://data/set"
        for path in folder.iterdir():
            if path.is_file():
                fsspec.filesystem("memory").pipe(f"/data/set/{path.name}", path.read_bytes())
    expected = local(folder)
    if named == "braces":
        url += "/train-{0000..0004}.tar"
        expected.digests = {}
    source = open_source(url, key="data.train", cache=cache_at(tmp_path))
    assert_same(source, expected)


@pytest.mark.parametrize("fault", [f for f in FAULTS if f != "wrong size"])
def test_without_a_manifest_all_are_fetched_and_checked_at_setup(
    server: Server, folder: Path, tmp_path: Path, fault: str
) -> None:
    server.faults["/train-0002.tar"] = list(FAULTS[fault])
    url = f"{server.url}/train-{{0000..0004}}.tar"
    source = open_source(url, key="data.train", cache=cache_at(tmp_path))
    asked = len(server.requests)
    expected = local(folder)
    expected.digests = {}
    assert_same(source, expected)
    assert len(server.requests) == asked
    assert source.where(0).startswith(f"{server.url}/train-0000.tar: 00000")


def test_a_single_shard(server: Server, folder: Path, tmp_path: Path) -> None:
    url = f"{server.url}/train-0001.tar"
    source = open_source(url, key="data.train", cache=cache_at(tmp_path))
    path = str(folder / "train-0001.tar")
    assert_same(source, open_source(path, key="data.train"))


def test_unreadable_shards_are_left_out_up_to_the_limit(server: Server, tmp_path: Path) -> None:
    server.always["/train-0001.tar"] = short
    server.always["/train-0003.tar"] = status(404)
    url = f"{server.url}/train-{{0000..0004}}.tar"
    source = open_source(url, key="data.train", cache=cache_at(tmp_path), max_bad=2)
    assert list(source.counts) == [3, 2, 3]
    assert isinstance(source.bad_shards, dict)  # type: ignore[attr-defined]
    assert {name.rpartition("/")[2] for name in source.bad_shards} == {  # type: ignore[attr-defined]
        "train-0001.tar",
        "train-0003.tar",
    }
    with pytest.raises(UserError, match=r"(404|attempts)"):
        open_source(url, key="data.train", cache=cache_at(tmp_path), max_bad=1)


def test_a_shard_lost_in_mid_run_fails_its_samples_once(server: Server, tmp_path: Path) -> None:
    source = remote(server, cache_at(tmp_path))
    server.always["/train-0001.tar"] = html
    for index in range(3, 7):
        with pytest.raises(UserError, match="attempts"):
            source.read(index)
        assert source.where(index) == f"{server.url}/train-0001.tar: sample {index - 3}"
    assert server.count("train-0001") == 6
    assert source.read(0).key == "train-0000/00000"


def test_a_manifest_that_lies_about_a_count_is_told(folder: Path, tmp_path: Path) -> None:
    tree = json.loads((folder / "manifest.json").read_text())
    tree["shards"][0]["count"], tree["count"] = 5, sum(COUNTS) + 2
    (folder / "manifest.json").write_text(json.dumps(tree))
    source = open_source(f"file://{folder}", key="data.train", cache=cache_at(tmp_path), window=2)
    with pytest.raises(UserError, match="3 samples, manifest says 5"):
        source.read(0)


REFUSED = {
    "no manifest": ("{url}/nowhere", r"not there \(answer 404\); name a folder"),
    "two folders": ("{url}/{{a,b}}", "must end in .tar"),
    "no url": ("http://[x", "is not a URL"),
    "pipe": ("pipe:cat x.tar", "can only be streamed"),
    "no store": ("reference://x/y.tar", "none of the protocols that a config may name"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_one_line(server: Server, tmp_path: Path, case: str) -> None:
    data, expected = REFUSED[case]
    with pytest.raises(UserError, match=expected) as caught:
        open_source(data.format(url=server.url), key="data.train", cache=cache_at(tmp_path))
    assert "\n" not in str(caught.value)


def test_a_damaged_manifest_is_named_by_its_url(
    server: Server, folder: Path, tmp_path: Path
) -> None:
    (folder / "manifest.json").write_text("{")
    with pytest.raises(UserError, match="not JSON") as caught:
        open_source(server.url, key="data.train", cache=cache_at(tmp_path))
    assert caught.value.where == f"{server.url}/manifest.json"


def test_a_window_must_fit_into_the_cache(server: Server, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"less than the 3 shards of a window.*shuffle_window"):
        remote(server, cache_at(tmp_path, limit=45000), window=3)
    with pytest.raises(UserError, match="less than the shards take"):
        open_source(
            f"{server.url}/train-{{0000..0004}}.tar",
            key="data.train",
            cache=cache_at(tmp_path, limit=45000),
        )


def test_a_small_cache_gives_the_same_samples(server: Server, folder: Path, tmp_path: Path) -> None:
    size = max(path.stat().st_size for path in folder.glob("*.tar"))
    cache = cache_at(tmp_path, limit=int(2.2 * size))
    for _ in range(2):
        assert_same(remote(server, cache, window=2), local(folder))
        gc.collect()  # a source that is gone pins no shard
    kept = sum(path.stat().st_size for path in (tmp_path / "cache").rglob("*.tar"))
    assert kept <= cache.limit
    assert len(server.requests) > 2 * len(COUNTS)  # some were fetched again


def test_reading_in_order_fetches_the_next_shard_ahead(server: Server, tmp_path: Path) -> None:
    source = open_source(server.url, key="data.val", cache=cache_at(tmp_path))
    source.read(0)
    until(lambda: server.count("train-") == 2)
    source.read(3)
    until(lambda: server.count("train-") == 3)


def test_a_source_survives_pickling(server: Server, folder: Path, tmp_path: Path) -> None:
    source = remote(server, cache_at(tmp_path))
    source.read(0)
    assert_same(pickle.loads(pickle.dumps(source)), local(folder))


# Fetching ahead -----------------------------------------------------------------------------------


def test_the_order_tells_the_present_window_and_the_next() -> None:
    told: list[list[int]] = []
    order = FollowedOrder(COUNTS, seed=3, window=2, tell=lambda shards: told.append(list(shards)))
    plain = Order(COUNTS, seed=3, window=2)
    size = sum(COUNTS)
    starts = np.cumsum([0, *COUNTS])
    for position in range(3 * size):
        index = order.index(position)
        assert index == plain.index(position)
        shard = int(np.searchsorted(starts, index, side="right")) - 1
        assert shard in told[-1][:2]
    assert len(told) == 9
    for now, following in itertools.pairwise(told):
        fresh = 1 if len(now) == len(following) == 3 else 2
        assert following[:fresh] == now[-fresh:]


def test_unshuffled_shards_follow_one_by_one() -> None:
    told: list[list[int]] = []
    order = FollowedOrder([2, 2], seed=0, window=0, tell=lambda shards: told.append(list(shards)))
    assert [order.index(k) for k in range(5)] == [0, 1, 2, 3, 0]
    assert told == [[0, 1], [1, 0], [0, 1]]


def until(condition: Callable[[], bool]) -> None:
    for _ in range(500):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it never came")


def test_what_is_wanted_comes_before_it_is_read(server: Server, tmp_path: Path) -> None:
    source = remote(server, cache_at(tmp_path))
    source.want([1, 3])
    until(lambda: len(source._ahead._held) == 2)
    assert server.count("train-") == 2
    source.read(3)
    assert server.count("train-") == 2
    source.want([2])  # shard 3 is given up, not fetched for nothing again
    until(lambda: list(source._ahead._held) == [2])


def test_only_what_fits_is_fetched_ahead(server: Server, folder: Path, tmp_path: Path) -> None:
    size = max(path.stat().st_size for path in folder.glob("*.tar"))
    source = remote(server, cache_at(tmp_path, limit=int(2.2 * size)), window=2)
    wanted: list[int] = []
    source._ahead = Ahead(lambda shard: wanted.append(shard))  # type: ignore[func-returns-value]
    source.want([0, 1, 2, 3, 4])
    until(lambda: len(wanted) >= 2)
    assert len(wanted) <= 3


def test_a_failure_ahead_is_told_where_the_sample_is_read(server: Server, tmp_path: Path) -> None:
    source = remote(server, cache_at(tmp_path))
    server.always["/train-0001.tar"] = status(403)
    source.want([1])
    until(lambda: server.count("train-0001") == 1)
    with pytest.raises(UserError, match="forbidden"):
        source.read(3)


def test_an_outage_that_is_over_when_the_shard_is_needed_costs_nothing(
    server: Server, folder: Path, tmp_path: Path
) -> None:
    source = remote(server, cache_at(tmp_path))
    server.always["/train-0001.tar"] = status(403)
    source.want([1])
    until(lambda: server.count("train-0001") == 1)
    del server.always["/train-0001.tar"]
    assert_same(source, local(folder))


def test_pins_of_what_is_given_up_are_closed() -> None:
    class Noted(Pin):
        def close(self) -> None:
            closed.add(int(self.path.name))

    closed: set[int] = set()
    ahead = Ahead(lambda shard: Noted(Path(str(shard)), -1))
    ahead.want([1, 2])
    until(lambda: len(ahead._held) == 2)
    ahead.want([2, 3])
    until(lambda: len(ahead._held) == 2)
    assert closed == {1}
    assert ahead.take(3) is not None
    assert ahead.take(7) is None


# Training -----------------------------------------------------------------------------------------

SHORT: dict[str, Any] = {
    "total_samples": 24,
    "checkpoint": {"every": 24},
    "validation": {"every": 0},
    "samples": {"every": 0, "count": 0},
}


def keys_of(run: Path) -> list[Any]:
    return rows(run / "trace.jsonl")


@pytest.mark.parametrize(("workers", "world"), [(2, 1), (0, 2)])
def test_a_run_over_a_faulty_network_sees_the_local_runs_samples(
    server: Server,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    workers: int,
    world: int,
) -> None:
    recipe = write_recipe(tmp_path, folder, **SHORT)
    assert train(recipe, tmp_path / "local", output=tmp_path / "log") == [0]
    monkeypatch.setattr("lit_restore.data.module.NETWORK", hasty())
    for name in ("train-0000.tar", "train-0003.tar"):
        server.faults[f"/{name}"] = list(FAULTS["three"])
    data = {"train": server.url, "cache_dir": str(tmp_path / "c"), "workers": workers}
    recipe = write_recipe(tmp_path, folder, **SHORT, data=data)
    codes = train(recipe, tmp_path / "remote", world=world, output=tmp_path / "log")
    assert codes == [0] * world, (tmp_path / "log.0").read_text()
    assert keys_of(tmp_path / "remote") == keys_of(tmp_path / "local")
    assert (tmp_path / "c").is_dir()


def test_a_lost_shard_ends_the_run_where_it_is_more_than_max_bad(
    server: Server, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lit_restore.data.module.NETWORK", hasty())
    server.always["/train-0001.tar"] = short
    data = {"train": server.url, "cache_dir": str(tmp_path / "c"), "max_bad": 1}
    recipe = write_recipe(tmp_path, folder, **SHORT, data=data)
    assert train(recipe, tmp_path / "run", output=tmp_path / "log") == [2]
    text = (tmp_path / "log.0").read_text()
    assert "raise data.max_bad" in text
    assert "Traceback" not in text


@pytest.mark.parametrize("option", ["cache_gb", "stream_buffer"])
def test_wrong_values_are_refused(option: str) -> None:
    with pytest.raises(UserError, match=f"data.{option}: -1"):
        ShardDataModule(**{option: -1})  # type: ignore[arg-type]


def test_a_remote_run_keeps_its_fingerprint(server: Server, folder: Path, tmp_path: Path) -> None:
    def of(train: str) -> dict[str, object]:
        data = ShardDataModule(
            train=train, val=None, crop=8, total_samples=16, cache_dir=str(tmp_path / "c")
        )
        data.setup("fit")
        return data.fingerprint()

    assert of(server.url) == of(str(folder))
    assert server.count("train-") == 1  # a crop is tried on one shard only


def test_an_impossible_crop_is_told_before_the_run(server: Server, tmp_path: Path) -> None:
    data = ShardDataModule(
        train=server.url, val=None, crop=64, total_samples=16, cache_dir=str(tmp_path / "c")
    )
    with pytest.raises(UserError, match="smaller than the 64 crop"):
        data.setup("fit")


def test_no_shard_without_samples_is_cached_in_vain(tmp_path: Path) -> None:
    write_tar(tmp_path / "x.tar", [("readme", b"x")])
    with pytest.raises(UserError, match="no sample") as caught:
        open_source(f"file://{tmp_path}/x.tar", key="data.train", cache=cache_at(tmp_path))
    assert caught.value.where == f"file://{tmp_path}/x.tar"
