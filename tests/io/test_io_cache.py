"""The cache of remote shards: no bad byte enters, one download a machine, the last used stay."""

from __future__ import annotations

import errno
import hashlib
import itertools
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
from conftest import encoded, picture, write_tar
from support_fork import fork, wait_all
from support_http import FAULTS, Server, hasty, html, serving, short, status, wrong_byte

from lit_restore.errors import UserError
from lit_restore.io import cache as cache_module
from lit_restore.io import fs
from lit_restore.io.cache import Cache, Pin, Remote, default_folder


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    folder = tmp_path / "served"
    folder.mkdir()
    for name in "abc":
        members = [(f"{name}{k}.png", encoded(picture(k))) for k in range(3)]
        write_tar(folder / f"{name}.tar", members)
    with serving(folder) as state:
        yield state


def cache_at(tmp_path: Path, *, limit: int = 1 << 30) -> Cache:
    return Cache(tmp_path / "cache", limit=limit, network=hasty())


def remote(server: Server, name: str = "a", *, known: bool = True) -> Remote:
    data = (server.folder / f"{name}.tar").read_bytes()
    url = f"{server.url}/{name}.tar"
    if not known:
        return Remote(url=url)
    return Remote(url=url, size=len(data), sha256=hashlib.sha256(data).hexdigest())


def fetched(cache: Cache, wanted: Remote) -> Pin:
    pin = cache.fetch(wanted)
    assert pin is not None
    return pin


def shards_in(cache: Cache) -> list[Path]:
    return sorted(
        path for path in cache.folder.rglob("*") if path.is_file() and "locks" not in path.parts
    )


@pytest.mark.parametrize("known", [True, False], ids=["manifest", "no manifest"])
@pytest.mark.parametrize("fault", FAULTS)
def test_what_enters_is_whole_whatever_the_server_did(
    server: Server, tmp_path: Path, fault: str, known: bool
) -> None:
    cache = cache_at(tmp_path)
    server.faults["/a.tar"] = list(FAULTS[fault])
    pin = fetched(cache, remote(server, known=known))
    if known or fault != "wrong size":  # 512 zeros more are a good tar
        assert pin.path.read_bytes() == (server.folder / "a.tar").read_bytes()
        tried = 1 if fault == "wrong size" and not known else 1 + len(FAULTS[fault])
        assert server.count("a.tar") == tried
    assert pin.path.name == "a.tar"
    assert shards_in(cache) == [pin.path]


@pytest.mark.parametrize("answer", [short, html, wrong_byte])
def test_what_stays_bad_never_enters(server: Server, tmp_path: Path, answer: object) -> None:
    cache = cache_at(tmp_path)
    server.always["/a.tar"] = answer  # type: ignore[assignment]
    with pytest.raises(UserError, match=r"\(6 attempts\)"):
        cache.fetch(remote(server))
    assert shards_in(cache) == []


@pytest.mark.parametrize("answer", [short, html, wrong_byte])
def test_without_the_checks_the_same_bytes_would_enter(
    server: Server, tmp_path: Path, answer: object
) -> None:
    """The negative control of the test above: size and hash are what keeps them out."""
    cache = cache_at(tmp_path)
    server.always["/a.tar"] = answer  # type: ignore[assignment]
    with mock.patch.object(cache_module, "_check"):
        pin = fetched(cache, Remote(url=f"{server.url}/a.tar"))
    assert pin.path.read_bytes() != (server.folder / "a.tar").read_bytes()


def test_html_is_named_where_there_is_no_manifest(server: Server, tmp_path: Path) -> None:
    server.always["/a.tar"] = html
    with pytest.raises(UserError, match="HTML page, not a tar") as caught:
        cache_at(tmp_path).fetch(remote(server, known=False))
    assert caught.value.where == f"{server.url}/a.tar"


def test_the_second_reader_asks_nobody(server: Server, tmp_path: Path) -> None:
    for _ in range(3):
        fetched(cache_at(tmp_path), remote(server)).close()
    assert server.count("a.tar") == 1


def test_another_size_or_digest_is_another_entry(server: Server) -> None:
    one = remote(server)
    assert one.key != Remote(url=one.url, size=one.size).key
    assert one.key != Remote(url=one.url + "x", size=one.size, sha256=one.sha256).key
    signed = Remote(url=one.url + "?X-Amz-Signature=abc", size=one.size, sha256=one.sha256)
    assert signed.key == one.key


def test_a_cached_file_of_another_size_is_fetched_anew(server: Server, tmp_path: Path) -> None:
    cache = cache_at(tmp_path)
    pin = fetched(cache, remote(server))
    pin.path.write_bytes(pin.path.read_bytes()[:700])
    pin.close()
    assert fetched(cache, remote(server)).path.read_bytes()[700:]
    assert server.count("a.tar") == 2


def test_many_processes_and_threads_download_once(server: Server, tmp_path: Path) -> None:
    go = tmp_path / "go"

    def child() -> int:
        while not go.exists():
            pass
        return int(cache_at(tmp_path).fetch(remote(server)) is None)

    pids = [fork(child, env={}, output=tmp_path / "log") for _ in range(3)]
    threads = [
        threading.Thread(target=lambda: cache_at(tmp_path).fetch(remote(server))) for _ in range(3)
    ]
    go.touch()
    for thread in threads:
        thread.start()
    assert wait_all(pids, 20) == [0, 0, 0]
    for thread in threads:
        thread.join()
    assert server.count("a.tar") == 1


def test_who_saw_nothing_gets_it_while_the_one_who_fetched_it_uses_it(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both_looked, looks = threading.Barrier(2), itertools.count()

    def look(path: Path, remote: Remote) -> bool:
        found = is_whole(path, remote)
        if next(looks) < 2:
            both_looked.wait(10)
        return found

    is_whole = cache_module._is_whole
    monkeypatch.setattr(cache_module, "_is_whole", look)
    pins: list[Pin | None] = []  # in use until the end
    threads = [
        threading.Thread(
            target=lambda: pins.append(cache_at(tmp_path).fetch(remote(server))), daemon=True
        )
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(pins) == 2
    assert all(pins)
    assert server.count("a.tar") == 1


def test_who_does_not_wait_gets_nothing_while_another_fetches(
    server: Server, tmp_path: Path
) -> None:
    holding, going_on = threading.Event(), threading.Event()

    def held(handler: object, data: bytes) -> None:
        holding.set()
        going_on.wait(10)
        FAULTS["503"][0](handler, data)  # type: ignore[arg-type]

    server.faults["/a.tar"] = [held]
    patient = Cache(tmp_path / "cache", limit=1 << 30)
    patient.network = hasty().__class__(silence=10, sleep=lambda _: None)
    thread = threading.Thread(target=patient.fetch, args=(remote(server),))
    thread.start()
    assert holding.wait(10)
    assert cache_at(tmp_path).fetch(remote(server), wait=False) is None
    going_on.set()
    thread.join()
    assert cache_at(tmp_path).fetch(remote(server), wait=False) is not None


def test_the_least_recently_used_goes_and_what_is_in_use_stays(
    server: Server, tmp_path: Path
) -> None:
    size = max((server.folder / f"{n}.tar").stat().st_size for n in "abc")
    cache = cache_at(tmp_path, limit=int(2.5 * size))
    for name in "ab":
        fetched(cache, remote(server, name)).close()
    fetched(cache, remote(server, "a")).close()  # used again, so b is the oldest
    fetched(cache, remote(server, "c")).close()
    assert [path.name for path in shards_in(cache)].count("b.tar") == 0
    assert {path.name for path in shards_in(cache)} == {"a.tar", "c.tar"}
    pin = fetched(cache, remote(server, "a"))
    fetched(cache, remote(server, "c")).close()
    fetched(cache, remote(server, "b")).close()
    assert {path.name for path in shards_in(cache)} == {"a.tar", "b.tar"}
    pin.close()


def test_more_in_use_than_the_limit_is_told_not_deadly(
    server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    size = max((server.folder / f"{n}.tar").stat().st_size for n in "abc")
    cache = cache_at(tmp_path, limit=int(1.5 * size))
    pins = [fetched(cache, remote(server, name)) for name in "abc"]
    assert [pin.path.exists() for pin in pins] == [True] * 3
    assert caplog.text.count("above data.cache_gb") == 1


def test_a_pin_holds_in_another_process_too(server: Server, tmp_path: Path) -> None:
    size = max((server.folder / f"{n}.tar").stat().st_size for n in "abc")
    read, write = os.pipe()

    def child() -> int:
        pin = fetched(cache_at(tmp_path), remote(server, "a"))
        os.write(write, b"x")
        threading.Event().wait(20)
        pin.close()
        return 0

    pid = fork(child, env={}, output=tmp_path / "log")
    os.read(read, 1)
    small = cache_at(tmp_path, limit=int(1.5 * size))
    fetched(small, remote(server, "b")).close()
    assert {path.name for path in shards_in(small)} == {"a.tar", "b.tar"}
    os.kill(pid, 9)
    wait_all([pid], 5)
    fetched(small, remote(server, "c")).close()
    assert {path.name for path in shards_in(small)} == {"c.tar"}


@pytest.mark.parametrize("known", [True, False])
def test_a_shard_larger_than_the_cache_is_one_line(
    server: Server, tmp_path: Path, known: bool
) -> None:
    with pytest.raises(UserError, match="make smaller shards") as caught:
        cache_at(tmp_path, limit=2000).fetch(remote(server, known=known))
    assert caught.value.where == "data.cache_gb"


def test_a_full_disk_is_one_line_and_leaves_nothing(server: Server, tmp_path: Path) -> None:
    class Full(fs.Disk):
        def write(self, fd: int, data: memoryview) -> None:
            super().write(fd, data[:100])
            raise OSError(errno.ENOSPC, "No space left on device")

    cache = cache_at(tmp_path)
    with fs.using(Full()), pytest.raises(UserError, match=r"the disk is full.*a\.tar"):
        cache.fetch(remote(server))
    assert shards_in(cache) == []
    assert server.count("a.tar") == 1  # no other attempt mends that


def test_a_killed_download_leaves_only_a_draft_that_the_next_sweeps(
    server: Server, tmp_path: Path
) -> None:
    class Killed(fs.Disk):
        def rename(self, old: Path, new: Path) -> None:
            os._exit(9)

    def child() -> int:
        with fs.using(Killed()):
            cache_at(tmp_path).fetch(remote(server))
        return 0

    assert wait_all([fork(child, env={}, output=tmp_path / "log")], 10) == [9]
    cache = cache_at(tmp_path)
    assert [path.name.startswith("tmp-") for path in shards_in(cache)] == [True]
    pin = fetched(cache, remote(server))
    assert shards_in(cache) == [pin.path]


def test_no_secret_is_written_or_told(server: Server, tmp_path: Path) -> None:
    url = f"{server.url.replace('//', '//ann:s3cr3tpw@')}/a.tar?token=hunter2222"
    cache = cache_at(tmp_path)
    fetched(cache, Remote(url=url)).close()
    names = " ".join(str(path) for path in cache.folder.rglob("*"))
    assert "s3cr3tpw" not in names
    assert "hunter2222" not in names
    server.always["/b.tar"] = status(403)
    with pytest.raises(UserError) as caught:
        cache.fetch(Remote(url=url.replace("/a.tar", "/b.tar")))
    assert "s3cr3tpw" not in str(caught.value)
    assert "hunter2222" not in str(caught.value)


def test_a_folder_that_cannot_be_written_is_one_line(server: Server, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(UserError, match=r"cannot write.*data\.cache_dir"):
        cache_at(tmp_path).fetch(remote(server))


def test_the_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIT_RESTORE_CACHE", "/x/y")
    assert default_folder() == Path("/x/y")
    monkeypatch.delenv("LIT_RESTORE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/z")
    assert default_folder() == Path("/z/lit_restore")
