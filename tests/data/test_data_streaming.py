"""Streams: endless, decoded by us, placed by position, and no shell unless it is trusted."""

from __future__ import annotations

import gzip
import logging
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import encoded, picture, write_tar
from support_http import Server, cut, hasty, html, serving, status
from support_runs import rows, train, write_recipe

from lit_restore.data.batch import Refusal, Sample
from lit_restore.data.module import ShardDataModule
from lit_restore.data.samples import Augmentation, augment
from lit_restore.data.streaming import StreamedSamples, StreamSource, open_streams
from lit_restore.errors import UserError
from lit_restore.io import trust
from lit_restore.io.cache import Cache

PLAIN = Augmentation(crop=None, flip=False, rotate=False)
ALL = Augmentation(crop=16, flip=True, rotate=True)


@pytest.fixture
def folder(make_shards: Callable[..., Path]) -> Path:
    return make_shards([3, 4, 2])


@pytest.fixture
def server(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with serving(folder) as state:
        yield state


@pytest.fixture
def trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trust, "_given", True)


def streamed(names: list[str] | StreamSource, **options: Any) -> StreamedSamples:
    source = names if isinstance(names, StreamSource) else StreamSource(names)
    given: dict[str, Any] = {
        "augmentation": PLAIN, "seed": 0, "start": 0, "rank": 0, "world": 1, "buffer": 4,
        "network": hasty(),
    }  # fmt: skip
    return StreamedSamples(source, **{**given, **options})


def take(samples: StreamedSamples, count: int) -> list[Sample]:
    found = [samples[position] for position in range(count)]
    assert all(isinstance(sample, Sample) for sample in found), found
    return found  # type: ignore[return-value]


def keys(samples: StreamedSamples, count: int) -> list[str]:
    return [sample.key for sample in take(samples, count)]


def names_in(folder: Path) -> list[str]:
    return [str(path) for path in sorted(folder.glob("*.tar"))]


def test_streams_are_endless_and_every_pass_has_every_sample(folder: Path) -> None:
    found = keys(streamed(names_in(folder), buffer=0), 36)
    expected = {
        f"train-000{s}/{k:05d}" for s, k in zip([0] * 3 + [1] * 4 + [2] * 2, range(9), strict=True)
    }
    passes = [found[first : first + 9] for first in range(0, 36, 9)]
    assert all(set(one) == expected for one in passes)
    assert len({tuple(one) for one in passes}) > 1
    shuffled = keys(streamed(names_in(folder), buffer=4), 36)
    assert set(shuffled) == expected
    assert shuffled != found


def test_the_order_is_a_function_of_seed_start_rank_and_world(folder: Path) -> None:
    names = names_in(folder)
    first = keys(streamed(names), 20)
    assert keys(streamed(names), 20) == first
    for other in ({"seed": 1}, {"start": 16}, {"rank": 1, "world": 8}):
        assert keys(streamed(names, **other), 20) != first


def test_streams_are_dealt_to_the_ranks_where_there_are_enough(folder: Path) -> None:
    seen = [set(keys(streamed(names_in(folder), rank=r, world=3), 12)) for r in range(3)]
    assert not seen[0] & seen[1]
    assert not seen[1] & seen[2]
    assert len(seen[0] | seen[1] | seen[2]) == 9


def test_crops_and_turns_follow_the_position(folder: Path) -> None:
    plain, whole = (
        streamed(names_in(folder), augmentation=ALL, seed=3),
        streamed(names_in(folder), seed=3),
    )
    for position in (40, 7, 1000):
        one, other = plain[position], whole[position]
        assert isinstance(one, Sample)
        assert isinstance(other, Sample)
        assert one.position == position
        assert one.key == other.key
        np.testing.assert_array_equal(one.image, augment(other, ALL, 3).image)


def test_pixels_pairs_labels_and_arrays_are_decoded_by_us(tmp_path: Path) -> None:
    import io

    array = io.BytesIO()
    np.save(array, np.arange(6, dtype=np.float32))
    members = [
        ("a/x.image.png", encoded(picture(1))),
        ("a/x.degraded.png", encoded(picture(1)[::2, ::2])),
        ("a/x.cls", b"7"),
        ("a/x.npy", array.getvalue()),
        ("a/x.json", b"{}"),
    ]
    (sample,) = take(streamed([str(write_tar(tmp_path / "s.tar", members))]), 1)
    np.testing.assert_array_equal(sample.image, picture(1))
    np.testing.assert_array_equal(sample.degraded, picture(1)[::2, ::2])
    assert (sample.key, sample.label) == ("s/a/x", 7)
    np.testing.assert_array_equal(sample.array, np.arange(6))


def test_a_pickle_in_a_stream_is_never_opened(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
            return open, (str(tmp_path / "ran"), "w")  # type: ignore[return-value]

    bomb = pickle.dumps(Bomb())
    members = [("x.png", encoded(picture(1))), ("x.pyd", bomb), ("x.pth", bomb), ("x.pickle", bomb)]
    take(streamed([str(write_tar(tmp_path / "s.tar", members))]), 3)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("named", ["folder", "braces", "file"])
def test_urls_are_streamed_without_being_kept(
    server: Server, folder: Path, tmp_path: Path, named: str
) -> None:
    cache = Cache(tmp_path / "cache", limit=1, network=hasty())
    data = {
        "folder": str(folder),
        "braces": f"{server.url}/train-{{0000..0002}}.tar",
        "file": f"file://{folder}/train-{{0000..0002}}.tar",
    }[named]
    found = keys(streamed(open_streams(data, key="data.train", cache=cache), buffer=0), 9)
    assert len(set(found)) == 9
    assert not (tmp_path / "cache").exists()


def test_compressed_shards_can_be_streamed(folder: Path, tmp_path: Path) -> None:
    packed = tmp_path / "x.tar.gz"
    packed.write_bytes(gzip.compress((folder / "train-0001.tar").read_bytes()))
    found = keys(streamed([str(packed)]), 4)
    assert {key.partition("/")[2] for key in found} == {f"{k:05d}" for k in range(3, 7)}


def test_what_cannot_be_read_is_skipped_and_told(server: Server, tmp_path: Path) -> None:
    server.always["/train-0000.tar"] = html
    server.faults["/train-0001.tar"] = [status(503), cut]
    server.always["/train-0002.tar"] = status(404)
    names = [f"{server.url}/train-000{k}.tar" for k in range(3)]
    samples = take(streamed(names, buffer=0), 30)
    bad = {Path(name).name: reason for sample in samples for name, reason in sample.bad}
    assert set(bad) == {"train-0000.tar", "train-0001.tar", "train-0002.tar"}
    assert "no tar" in bad["train-0000.tar"]
    assert "ended at byte" in bad["train-0001.tar"]
    assert "404" in bad["train-0002.tar"]


def test_no_half_sample_comes_from_a_stream_that_breaks(tmp_path: Path) -> None:
    members = [("a.png", encoded(picture(0))), ("a.cls", b"1")]
    members += [("b.png", encoded(picture(1))), ("b.cls", b"2")]
    path = write_tar(tmp_path / "s.tar", members)
    whole = path.read_bytes()
    at = whole.index(b"b.cls")
    path.write_bytes(whole[: at + 200])  # inside the header of b.cls: b has an image and no label
    samples = take(streamed([str(path)], buffer=0), 4)
    assert {(sample.key, sample.label) for sample in samples} == {("s/a", 1)}


def test_a_stream_cut_at_a_members_border_is_noticed(folder: Path) -> None:
    path = folder / "train-0001.tar"
    whole = path.read_bytes()
    path.write_bytes(whole[: whole.index(b"00005.png")])
    bad = [entry for sample in take(streamed([str(path)]), 8) for entry in sample.bad]
    assert bad
    assert "no end mark" in bad[0][1]


def test_a_corrupt_picture_is_skipped(tmp_path: Path) -> None:
    members = [(f"{k}.png", encoded(picture(k))) for k in range(3)]
    members[1] = ("1.png", members[1][1][:100])
    samples = take(streamed([str(write_tar(tmp_path / "s.tar", members))], buffer=0), 4)
    assert [sample.key for sample in samples] == ["s/0", "s/2", "s/0", "s/2"]
    assert [name for name, _ in samples[1].bad] == [f"{tmp_path}/s.tar: 1"]


def test_streams_that_give_nothing_end_the_run(server: Server) -> None:
    server.always["/train-0000.tar"] = html
    refusal = streamed([f"{server.url}/train-0000.tar"])[0]
    assert isinstance(refusal, Refusal)
    assert "no other stream gives a sample either" in refusal.message
    assert refusal.where == f"{server.url}/train-0000.tar"


def test_a_hostile_header_fills_no_memory(tmp_path: Path) -> None:
    import tarfile

    for kind, size in ((tarfile.REGTYPE, 10**12), (tarfile.XHDTYPE, 10**12)):
        info = tarfile.TarInfo("a.png")
        info.type, info.size = kind, size
        path = tmp_path / "s.tar"
        path.write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
        refusal = streamed([str(path)])[0]
        assert isinstance(refusal, Refusal)
        assert "TB" in refusal.message


# Shell commands -----------------------------------------------------------------------------------


def test_a_pipe_needs_the_trust_flag(tmp_path: Path, folder: Path) -> None:
    cache = Cache(tmp_path / "cache", limit=1)
    command = f"pipe:touch {tmp_path}/ran"
    with pytest.raises(UserError, match="pipe: runs a shell; --trust_config allows it") as caught:
        open_streams(command, key="data.train", cache=cache)
    assert caught.value.where == "data.train"
    refusal = streamed([command])[0]
    assert isinstance(refusal, Refusal)
    assert not (tmp_path / "ran").exists()


@pytest.mark.usefixtures("trusted")
def test_a_trusted_pipe_is_read_and_its_failure_told(tmp_path: Path, folder: Path) -> None:
    cache = Cache(tmp_path / "cache", limit=1)
    source = open_streams(
        f"pipe:cat {folder}/train-{{0000..0002}}.tar", key="data.train", cache=cache
    )
    assert len(source.names) == 3
    assert len(set(keys(streamed(source, buffer=0), 9))) == 9
    failing = streamed([f"pipe:cat {folder}/train-0000.tar; exit 3"], buffer=0)
    bad = [entry for sample in take(failing, 5) for entry in sample.bad]
    assert not bad  # the tar had ended before the command did
    whole = (folder / "train-0000.tar").read_bytes()
    cut = f"pipe:head -c {whole.index(b'00001.png')} {folder}/train-0000.tar; exit 3"
    refusal = streamed([cut], buffer=0)[0]
    assert isinstance(refusal, Refusal)
    assert refusal.message.startswith("the command ended with code 3")
    endless = streamed([f"pipe:cat {folder}/train-0000.tar; sleep 1000"], buffer=0)
    assert len(keys(endless, 2)) == 2


@pytest.mark.parametrize("trust_it", [False, True])
def test_training_by_a_pipe(folder: Path, tmp_path: Path, trust_it: bool) -> None:
    data = {"train": f"pipe:cat {folder}/train-{{0000..0002}}.tar", "streaming": True}
    recipe = write_recipe(tmp_path, folder, **SHORT, data=data)
    options = ["--trust_config"] if trust_it else []
    codes = train(recipe, tmp_path / "run", *options, output=tmp_path / "log")
    text = (tmp_path / "log.0").read_text()
    assert codes == [0 if trust_it else 2], text
    assert ("pipe: runs a shell; --trust_config allows it" in text) != trust_it


# Training -----------------------------------------------------------------------------------------

SHORT: dict[str, Any] = {
    "total_samples": 24,
    "checkpoint": {"every": 8},
    "validation": {"every": 0},
    "samples": {"every": 0, "count": 0},
}


def test_a_run_is_deterministic_and_resumes_at_its_position(folder: Path, tmp_path: Path) -> None:
    data = {"train": str(folder), "streaming": True, "workers": 2}
    recipe = write_recipe(tmp_path, folder, **SHORT, data=data)
    assert train(recipe, tmp_path / "one", output=tmp_path / "log") == [0]
    one = rows(tmp_path / "one" / "trace.jsonl")
    assert "approximate" in (tmp_path / "log.0").read_text()
    failpoint = "train.step=exit@2"
    assert train(recipe, tmp_path / "cut", failpoint=failpoint, output=tmp_path / "log") == [1]
    assert train(recipe, tmp_path / "cut", output=tmp_path / "log") == [0]
    resumed = rows(tmp_path / "cut" / "trace.jsonl")
    assert [row["samples_seen"] for row in resumed] == [row["samples_seen"] for row in one]
    assert resumed[0] == one[0]


def test_the_module_says_what_a_stream_cannot(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = ShardDataModule(train=str(folder), val=None, crop=8, total_samples=16, streaming=True)
    with caplog.at_level(logging.WARNING):
        data.setup("fit")
    assert "only indexed shards resume exactly" in caplog.text
    assert data.fingerprint()["data"]["shards"] == [[name] for name in names_in(folder)]  # type: ignore[index]
    with pytest.raises(UserError, match="no numbers"):
        data.sources["train"].read(0)
