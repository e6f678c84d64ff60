"""The index of a shard: compact, the same whether scanned or kept, and distrusted."""

from __future__ import annotations

import hashlib
import json
import os
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import encoded, picture, write_tar

from lit_restore.data import index as index_module
from lit_restore.data.entries import Entries, Entry, Span
from lit_restore.data.index import ShardIndex, read_index
from lit_restore.data.reader import ShardSource
from lit_restore.io import archive

MIXED = [
    ("dir/é.image.png", b"12345"),
    ("dir/é.cls", b"7"),
    ("b.JPG", b"123"),
    ("c.npy", b"1234567"),
    ("c.json", b"{}"),
    ("c.degraded.webp", b""),
]


def rows(index: ShardIndex) -> list[tuple[str, dict[str, tuple[int, int, str]]]]:
    return [
        (e.key, {n: (s.offset, s.size, s.kind) for n, s in sorted(e.fields.items())})
        for e in index.entries
    ]


def no_scan(path: Path) -> Entries:
    raise AssertionError(f"{path} was scanned")


def kept(shard: Path) -> Path:
    return shard.parent / ".index" / f"{shard.name}.idx"


def test_the_compact_index_says_what_the_headers_say(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "x.tar", MIXED)
    found = rows(read_index(shard))
    at = {member.name: member.offset for member in archive.scan_tar(shard)}
    assert found == [
        (
            "dir/é",
            {"image": (at["dir/é.image.png"], 5, "png"), "label": (at["dir/é.cls"], 1, "cls")},
        ),
        ("b", {"image": (at["b.JPG"], 3, "jpg")}),
        ("c", {"array": (at["c.npy"], 7, "npy"), "degraded": (at["c.degraded.webp"], 0, "webp")}),
    ]  # fmt: skip
    entries = read_index(shard).entries
    assert entries.counts() == {"array": 1, "degraded": 1, "image": 2, "label": 1}
    assert [e.key for e in entries[-1:0:-1]] == ["c", "b"]
    assert entries[-1] == entries[2]
    with pytest.raises(IndexError):
        entries[3]


def test_the_digest_is_that_of_the_runs_before(tmp_path: Path) -> None:
    index = read_index(write_tar(tmp_path / "x.tar", [("a.png", b"123"), ("a.cls", b"1")]))
    expected = hashlib.sha256(b"a\0image:512:3\0label:1536:1\0").hexdigest()
    assert index.digest == expected


def test_a_fresh_side_car_saves_the_scan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shard = write_tar(tmp_path / "x.tar", MIXED)
    scanned = rows(read_index(shard))
    monkeypatch.setattr(index_module, "_scan", no_scan)
    assert rows(read_index(shard)) == scanned
    os.utime(shard, ns=(1, 1))
    with pytest.raises(AssertionError, match="was scanned"):  # the negative control
        read_index(shard)


def test_a_shard_written_anew_is_scanned_anew(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "x.tar", MIXED)
    first = read_index(shard)
    write_tar(shard, [("z.png", encoded(picture(9)))])
    assert [e.key for e in read_index(shard).entries] == ["z"]
    assert read_index(shard).digest != first.digest


def test_the_old_format_is_replaced_without_a_word(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shard = write_tar(tmp_path / "x.tar", MIXED)
    old = tmp_path / ".index" / "x.tar.json"
    old.parent.mkdir()
    old.write_text(json.dumps({"stamp": {"format": 1}, "entries": []}))
    assert len(read_index(shard).entries) == 3
    assert not old.exists()
    assert kept(shard).exists()
    assert not caplog.records


def forged(header: Callable[[dict[str, object]], object], spoil: Callable[[bytearray], object]):  # type: ignore[no-untyped-def]
    """A side-car whose checksum is right and whose content is not."""

    def forge(path: Path) -> None:
        data = path.read_bytes()
        line, body = data[: data.index(b"\n")], bytearray(data[data.index(b"\n") + 1 :])
        said = json.loads(line)
        spoil(body)
        said["crc32"] = zlib.crc32(body)
        header(said)
        path.write_bytes(json.dumps(said).encode() + b"\n" + body)

    return forge


def put(at: int, data: bytes) -> Callable[[bytearray], object]:
    return lambda body: body.__setitem__(slice(at, at + len(data)), data)


NOTHING = put(0, b"")
# Three samples, fields array, degraded, image, label: 4 x 24 bytes of offsets, 12 of ends,
# 4 x 12 of sizes, 4 x 3 of kinds, then "dir/ébc".


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        lambda path: path.write_bytes(path.read_bytes()[:-1] + b"x"),
        lambda path: path.write_bytes(b"[" * 99999 + b"\n"),
        lambda path: path.write_bytes(b"[" * 3999 + b"\n"),
        lambda path: path.write_bytes(b"{}\n"),
        lambda path: path.write_bytes(b"[]\n"),
        lambda path: path.write_bytes(b"\xff\n"),
        forged(lambda said: said.update(format=1), NOTHING),
        forged(lambda said: said.update(samples=0), NOTHING),
        forged(lambda said: said.update(samples=-1), NOTHING),
        forged(lambda said: said.update(samples=True), NOTHING),
        forged(lambda said: said.update(samples=10**15), NOTHING),
        forged(lambda said: said.update(fields=["a"] * 10**4), NOTHING),
        forged(lambda said: said.update(fields=[1, 2, 3, 4]), NOTHING),
        forged(lambda said: said.update(fields="abcd"), NOTHING),
        forged(lambda said: said, put(16, (-1).to_bytes(8, "little", signed=True))),
        forged(lambda said: said, put(16, (2**63 - 1).to_bytes(8, "little"))),
        forged(lambda said: said, put(96, (2**32 - 1).to_bytes(4, "little"))),
        forged(lambda said: said, put(100, (5).to_bytes(4, "little"))),
        forged(lambda said: said, put(96, (5).to_bytes(4, "little"))),
        forged(lambda said: said, put(108 + 8, (2**32 - 1).to_bytes(4, "little"))),
        forged(lambda said: said, put(156 + 2, b"\x06")),
        forged(lambda said: said, put(168, b"\xff")),
    ],
)  # fmt: skip
def test_a_damaged_side_car_is_made_anew(tmp_path: Path, spoil: Callable[[Path], object]) -> None:
    shard = write_tar(tmp_path / "x.tar", MIXED)
    scanned = rows(read_index(shard))
    good = kept(shard).read_bytes()
    spoil(kept(shard))
    assert kept(shard).read_bytes() != good
    assert rows(read_index(shard)) == scanned
    assert kept(shard).read_bytes() == good


def test_a_forged_side_car_that_is_sound_is_read(tmp_path: Path) -> None:
    """The negative control of the forgeries above: it is their content that is refused."""
    shard = write_tar(tmp_path / "x.tar", MIXED)
    read_index(shard)
    forged(lambda said: said, put(168, b"D"))(kept(shard))
    assert read_index(shard).entries[0].key == "Dir/é"


def test_a_sample_costs_tens_of_bytes(tmp_path: Path) -> None:
    count, key = 4000, len("n00000000_000000")
    members = [(f"n00000000_{k:06d}.jpg", b"x") for k in range(count)]
    shard = write_tar(tmp_path / "x.tar", members)
    for known in (False, True):
        assert kept(shard).exists() == known
        tracemalloc.start()
        index = read_index(shard)
        held = tracemalloc.get_traced_memory()[0] / count
        tracemalloc.stop()
        assert index.entries.nbytes == count * (17 + key)
        assert held <= 80 + key, held


def test_any_sample_is_found_among_shards_of_any_size() -> None:
    def shard(number: int, count: int) -> ShardIndex:
        entries = [Entry(f"{k}", {"image": Span(0, 1, "jpg")}) for k in range(count)]
        return ShardIndex(Path(f"s{number}.tar"), Entries.of(entries), 1)

    counts = np.random.default_rng(0).integers(1, 5, 300)
    source = ShardSource([shard(number, int(count)) for number, count in enumerate(counts)])
    keys = [f"s{number}/{k}" for number, count in enumerate(counts) for k in range(count)]
    assert [source.key(k) for k in range(len(source))] == keys
