"""Transfers: what is tried again, what is not, and what no line ever shows."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
from support_http import (
    FAULTS,
    Server,
    hasty,
    html,
    redirect,
    serving,
    short,
    status,
    without_length,
)

from lit_restore.errors import UserError
from lit_restore.io import trust
from lit_restore.io.remote import TransferError, fetch_bytes, open_stream
from lit_restore.io.urls import expand, file_name, identity, inside, is_remote, public

BODY = bytes(range(256)) * 40


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    folder = tmp_path / "served"
    folder.mkdir()
    (folder / "x.bin").write_bytes(BODY)
    (folder / "y.bin").write_bytes(BODY)
    with serving(folder) as state:
        yield state


CHECKED_LATER = ("short", "html", "wrong size", "three")
"""What only the reader of the body can tell."""


@pytest.mark.parametrize("fault", [f for f in FAULTS if f not in CHECKED_LATER])
def test_a_fault_that_passes_is_tried_again(server: Server, fault: str) -> None:
    server.faults["/x.bin"] = list(FAULTS[fault])
    assert fetch_bytes(f"{server.url}/x.bin", limit=1 << 20, network=hasty()) == BODY
    assert server.count("x.bin") == 2


def test_waits_grow_by_doubling_and_a_fifth_of_chance(server: Server) -> None:
    server.always["/x.bin"] = status(503)
    waited: list[float] = []
    with pytest.raises(UserError, match=r"answers 503 \(6 attempts\)"):
        fetch_bytes(f"{server.url}/x.bin", limit=1 << 20, network=hasty(waited))
    assert len(waited) == 5
    for wait, middle in zip(waited, (1, 2, 4, 8, 16), strict=True):
        assert 0.8 * middle <= wait <= 1.2 * middle
    assert len({round(w / m, 6) for w, m in zip(waited, (1, 2, 4, 8, 16), strict=True)}) > 1


@pytest.mark.parametrize(("asked", "obeyed"), [(7, 7.0), (86400, 60.0)])
def test_retry_after_is_obeyed_up_to_a_minute(server: Server, asked: int, obeyed: float) -> None:
    server.faults["/x.bin"] = [status(429, Retry_After=asked)]
    waited: list[float] = []
    fetch_bytes(f"{server.url}/x.bin", limit=1 << 20, network=hasty(waited))
    assert waited == [obeyed]


@pytest.mark.parametrize("code", [400, 401, 403, 404, 410])
def test_what_will_not_pass_is_told_at_once(server: Server, code: int) -> None:
    server.always["/x.bin"] = status(code)
    with pytest.raises(UserError, match=str(code)) as caught:
        fetch_bytes(f"{server.url}/x.bin", limit=1 << 20, network=hasty())
    assert server.count("x.bin") == 1
    assert caught.value.where == f"{server.url}/x.bin"


def test_a_short_body_without_length_looks_whole(server: Server) -> None:
    """Why the cache checks more: neither urllib nor any peer sees this."""
    server.always["/x.bin"] = short
    assert fetch_bytes(f"{server.url}/x.bin", limit=1 << 20) == BODY[: len(BODY) // 2]
    server.always["/x.bin"] = html
    assert fetch_bytes(f"{server.url}/x.bin", limit=1 << 20).startswith(b"<!DOCTYPE")
    server.always["/x.bin"] = without_length
    assert fetch_bytes(f"{server.url}/x.bin", limit=1 << 20) == BODY


def test_nothing_larger_than_the_limit_is_taken_in(server: Server) -> None:
    with pytest.raises(UserError, match="above"):
        fetch_bytes(f"{server.url}/x.bin", limit=100, network=hasty())


def test_a_slow_reader_is_not_a_slow_network(server: Server) -> None:
    import time

    with open_stream(f"{server.url}/x.bin", network=hasty()) as stream:
        stream.read(10)
        time.sleep(0.3)
        assert stream.read(10)


def test_no_connection_is_tried_again_and_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    waited: list[float] = []
    with pytest.raises(UserError, match="no connection"):
        fetch_bytes("http://127.0.0.1:9/x.tar", limit=10, network=hasty(waited))
    assert len(waited) == 5


def test_redirects_are_followed_few_and_to_http_only(server: Server) -> None:
    server.faults["/y.bin"] = [redirect(f"{server.url}/x.bin")]
    assert fetch_bytes(f"{server.url}/y.bin", limit=1 << 20, network=hasty()) == BODY
    server.always["/y.bin"] = redirect("ftp://h/etc/passwd")
    with pytest.raises(UserError, match="redirected from http to ftp, refused"):
        fetch_bytes(f"{server.url}/y.bin", limit=1 << 20, network=hasty())
    server.always["/y.bin"] = redirect(f"{server.url}/y.bin")
    with pytest.raises(UserError, match="redirected too often"):
        fetch_bytes(f"{server.url}/y.bin", limit=1 << 20, network=hasty())
    numbers = itertools.count()
    server.always["/y.bin"] = lambda handler, data: redirect(f"/y.bin?{next(numbers)}")(
        handler, data
    )
    before = len(server.requests)
    with pytest.raises(UserError, match="redirected too often"):
        fetch_bytes(f"{server.url}/y.bin", limit=1 << 20, network=hasty())
    assert len(server.requests) - before == 6


def test_a_login_in_the_url_is_sent_not_shown_and_not_passed_on(server: Server) -> None:
    host = server.url.removeprefix("http://")
    server.faults["/y.bin"] = [redirect(f"{server.url}/x.bin")]
    fetch_bytes(f"http://ann:s3cr3t@{host}/y.bin", limit=1 << 20, network=hasty())
    assert server.logins == ["Basic YW5uOnMzY3IzdA==", None]
    with pytest.raises(UserError) as caught:
        fetch_bytes(f"http://ann:s3cr3t@{host}/z?token=hunter22", limit=1 << 20, network=hasty())
    assert "s3cr3t" not in str(caught.value)
    assert "hunter22" not in str(caught.value)


@pytest.mark.parametrize("url", ["http://[::1/x.tar", "http://host:port/x.tar", "http:///x.tar"])
def test_what_is_no_url_is_one_line(url: str) -> None:
    with pytest.raises((UserError, TransferError)) as caught:
        open_stream(url, network=hasty())
    assert "\n" not in str(caught.value)


def test_fsspec_reads_files_and_memory_and_says_what_is_missing(tmp_path: Path) -> None:
    import fsspec

    (tmp_path / "x.bin").write_bytes(BODY)
    assert fetch_bytes(f"file://{tmp_path}/x.bin", limit=1 << 20, network=hasty()) == BODY
    fsspec.filesystem("memory").pipe("/folder/x.bin", BODY)
    assert fetch_bytes("memory://folder/x.bin", limit=1 << 20, network=hasty()) == BODY
    with pytest.raises(UserError, match="not there"):
        fetch_bytes("memory://folder/y.bin", limit=10, network=hasty())
    with pytest.raises(UserError, match="none of the protocols"):
        fetch_bytes("nonsense://folder/y.bin", limit=10, network=hasty())


def test_protocols_that_can_run_code_need_trust(monkeypatch: pytest.MonkeyPatch) -> None:
    for url in ("reference://x/y.tar", "simplecache::file:///x.tar", "file:///a::file:///x.tar"):
        with pytest.raises(UserError, match="--trust_config"):
            open_stream(url, network=hasty())
    monkeypatch.setattr(trust, "_given", True)
    with pytest.raises(UserError, match="no such protocol"):
        open_stream("nonsense://folder/y.bin", network=hasty())


def test_braces_are_written_out() -> None:
    assert expand("s3://b/t-{08..11}.tar", key="k") == [
        f"s3://b/t-{n:02d}.tar" for n in range(8, 12)
    ]
    assert expand("a{1,2}{x,y}", key="k") == ["a1x", "a1y", "a2x", "a2y"]
    assert expand("pipe:cat ${HOME}/{1..2}", key="k") == [
        "pipe:cat ${HOME}/1",
        "pipe:cat ${HOME}/2",
    ]
    assert expand("awk '{print}'", key="k") == ["awk '{print}'"]
    with pytest.raises(UserError, match="more than 1000000 shards"):
        expand("x{0..9999999999}", key="k")


def test_a_url_signed_anew_is_the_same_file() -> None:
    one = "https://u:p@h/a.tar?file=3&X-Amz-Signature=abc&X-Amz-Date=1&Expires=5"
    two = "https://h/a.tar?file=3&X-Amz-Signature=xyz&X-Amz-Date=2&Expires=6"
    assert identity(one) == identity(two) == "https://h/a.tar?file=3"
    assert identity("https://h/a.tar?file=3") != identity("https://h/a.tar?file=4")
    commits = [f"https://h/resolve/{digit * 40}/a.tar" for digit in "ab"]
    assert identity(commits[0]) != identity(commits[1])
    assert "abc" not in public(one)


def test_names_and_folders() -> None:
    assert file_name("https://h/a/train-0%201.tar?x=/y") == "train-0 1.tar"
    assert file_name("https://h/..%2f..%2fetc") == "etc"
    assert inside("https://h/a/?k=v", "t 1.tar") == "https://h/a/t%201.tar?k=v"
    assert inside("memory://folder", "t.tar") == "memory://folder/t.tar"
    assert inside("file:///a/b", "t.tar") == "file:///a/b/t.tar"
    assert is_remote("s3://b/x")
    assert not is_remote("pipe:curl https://h/x.tar")
    assert not is_remote("/data/x.tar")
