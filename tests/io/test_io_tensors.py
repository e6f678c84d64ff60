"""Safetensors: the same bytes for the same contents, and no header is believed."""

from __future__ import annotations

import contextlib
import io
import json
import random
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_restore.errors import UserError
from lit_restore.io.tensors import (
    DTYPES,
    load_tensors,
    read_header,
    read_metadata,
    save_tensors,
)


def sample(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    """Random bits of this dtype, NaNs included; booleans are 0 or 1."""
    count = torch.Size(shape).numel() * dtype.itemsize
    top = 2 if dtype == torch.bool else 256
    raw = torch.randint(0, top, (count,), dtype=torch.uint8, generator=torch.Generator())
    return raw.view(dtype).reshape(shape)


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    flat = [t.reshape(-1).contiguous().view(torch.uint8) for t in (a, b)]
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(*flat)


def written(tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None = None) -> bytes:
    buffer = io.BytesIO()
    save_tensors(buffer, tensors, metadata)
    return buffer.getvalue()


def raw_file(path: Path, header: str | bytes, data: bytes = b"") -> Path:
    text = header.encode() if isinstance(header, str) else header
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def entry(begin: int, end: int, shape: list[int] | None = None, dtype: str = "U8") -> str:
    dims = json.dumps([end - begin] if shape is None else shape)
    return f'{{"dtype":"{dtype}","shape":{dims},"data_offsets":[{begin},{end}]}}'


SHAPES = {"matrix": (3, 5), "empty": (0, 2), "scalar": ()}
EVERY = {
    f"{code}.{kind}": sample(d, *s) for code, d in DTYPES.items() for kind, s in SHAPES.items()
}


@pytest.mark.parametrize("dtype", DTYPES)
def test_round_trip_keeps_every_bit_of_every_dtype(tmp_path: Path, dtype: str) -> None:
    tensors = {k: v for k, v in EVERY.items() if k.startswith(dtype + ".")}
    path = tmp_path / "x.safetensors"
    path.write_bytes(written(tensors))
    found = load_tensors(path)
    assert found.keys() == tensors.keys()
    assert all(same_bits(found[name], tensors[name]) for name in tensors)


def test_the_library_reads_what_we_write(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(written(EVERY, {"format": "pt"}))
    found = safetensors.torch.load_file(path)
    assert found.keys() == EVERY.keys()
    assert all(same_bits(found[name], EVERY[name]) for name in EVERY)


def test_we_read_what_the_library_writes(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    safetensors.torch.save_file(EVERY, path, metadata={"a": "é", "b": "{}"})
    found = load_tensors(path)
    assert found.keys() == EVERY.keys()
    assert all(same_bits(found[name], EVERY[name]) for name in EVERY)
    assert read_metadata(path) == {"a": "é", "b": "{}"}


def test_bytes_depend_on_the_contents_alone() -> None:
    tensors = {
        name: EVERY[name] for name in ("F32.matrix", "BF16.matrix", "U8.empty", "BOOL.scalar")
    }
    backwards = {name: tensors[name] for name in reversed(tensors)}
    assert written(tensors, {"a": "1", "b": "2"}) == written(backwards, {"b": "2", "a": "1"})
    other = dict(tensors, **{"BOOL.scalar": ~tensors["BOOL.scalar"]})
    assert written(tensors) != written(other)


def test_every_tensor_is_aligned_to_its_element(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(written(EVERY))
    header = read_header(path)
    assert all((header.data + e.begin) % e.dtype.itemsize == 0 for e in header.entries)


def test_views_are_written_as_they_look(tmp_path: Path) -> None:
    base = torch.arange(24.0).reshape(4, 6)
    views = {
        "t": base.t(),
        "s": base[:, ::2],
        "e": base[:1].expand(3, 6),
        "g": base.requires_grad_(),
    }
    path = tmp_path / "x.safetensors"
    path.write_bytes(written(views))
    assert all(torch.equal(found, views[name]) for name, found in load_tensors(path).items())


def test_writer_streams_in_chunks() -> None:
    sizes = []

    class Sink:
        def write(self, data: bytes) -> None:
            sizes.append(len(data))

    save_tensors(Sink(), {"a": torch.zeros(5_000_000)})
    assert sum(sizes[1:]) == 20_000_000
    assert max(sizes) <= 1 << 22


def test_loaded_tensors_are_independent_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(written({"a": torch.ones(4)}))
    found = load_tensors(path)["a"]
    path.write_bytes(bytes(100))
    assert found.add_(1).tolist() == [2.0] * 4


def test_read_error_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(written({"a": torch.ones(4)}))

    def broken(*args: object) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("os.preadv", broken)
    with pytest.raises(UserError, match=r"x\.safetensors: cannot be read \(Input/output error\)"):
        load_tensors(path)


MANY = "{" + ",".join(f'"{i}":{entry(0, 0)}' for i in range(200_000)) + "}"
CORPUS: dict[str, tuple[str | bytes, bytes, str]] = {
    "st_overlap": (
        f'{{"a":{entry(0, 8)},"b":{entry(4, 12)}}}',
        bytes(12),
        "tensors a and b overlap",
    ),
    "st_same": (f'{{"b":{entry(0, 8)},"a":{entry(0, 8)}}}', bytes(8), "tensors a and b overlap"),
    "st_dup": (f'{{"a":{entry(0, 4)},"a":{entry(4, 8)}}}', bytes(8), "tensor a is listed twice"),
    "st_tail": (f'{{"a":{entry(0, 4)}}}', bytes(5), "1 byte after the last tensor"),
    "st_gap": (
        f'{{"a":{entry(0, 4)},"b":{entry(6, 8)}}}',
        bytes(8),
        "2 bytes unused before tensor b",
    ),
    "st_start": (f'{{"a":{entry(4, 8)}}}', bytes(8), "4 bytes unused before tensor a"),
    "st_many": (MANY, b"", "200000 tensors, limit 100000"),
    "st_cut": (
        f'{{"a":{entry(0, 4)}}}',
        bytes(3),
        "truncated: tensors need 4 bytes, file has 3 bytes",
    ),
    "st_size": (
        f'{{"a":{entry(0, 4, [2])}}}',
        bytes(4),
        "tensor a: shape needs 2 bytes, data_offsets give 4 bytes",
    ),
    "st_negative": (f'{{"a":{entry(0, 4, [-4])}}}', bytes(4), "tensor a: bad shape"),
    "st_wide": (f'{{"a":{entry(0, 0, [0] + [2**59] * 9)}}}', b"", "tensor a: bad shape"),
    "st_axes": (f'{{"a":{entry(0, 1, [1] * 65)}}}', b"\0", "tensor a: bad shape"),
    "st_true": (f'{{"a":{entry(0, 1).replace("[1]", "[true]")}}}', b"\0", "tensor a: bad shape"),
    "st_backwards": (f'{{"a":{entry(4, 0, [0])}}}', bytes(4), "tensor a: bad data_offsets"),
    "st_dtype": (
        f'{{"a":{entry(0, 4, dtype="PICKLE")}}}',
        bytes(4),
        "tensor a: dtype PICKLE is not supported",
    ),
    "st_keys": ('{"a":{"dtype":"U8"}}', b"", "tensor a: needs dtype, shape and data_offsets"),
    "st_metadata": ('{"__metadata__":{"a":1}}', b"", "metadata must map names to strings"),
    "st_list": ("[]", b"", "truncated, or not a safetensors file"),
    "st_json": ('{"a":', b"", "truncated, or not a safetensors file"),
    "st_bytes": (b"\xff\xfe{}", b"", "truncated, or not a safetensors file"),
    "st_deep": ("[" * 100_000, b"", "truncated, or not a safetensors file"),
    "st_digits": ('{"a":' + "1" * 5000 + "}", b"", "truncated, or not a safetensors file"),
    "st_control": (
        f'{{"\\u001b[2J":{entry(4, 8)}}}',
        bytes(8),
        "4 bytes unused before tensor \\x1b[2J",
    ),
}


@pytest.mark.parametrize("case", CORPUS)
def test_refused_header_says_why_in_one_line(tmp_path: Path, case: str) -> None:
    header, data, message = CORPUS[case]
    path = raw_file(tmp_path / "x.safetensors", header, data)
    for read in (load_tensors, read_metadata):
        with pytest.raises(UserError) as caught:
            read(path)
        assert (caught.value.message, caught.value.where) == (message, str(path))


def test_refused_before_the_header_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    for content, message in {
        b"": "empty file",
        b"1234": "truncated, or not a safetensors file",
        (1_100_000_000_000).to_bytes(8, "little")
        + bytes(16): "header says 1.1 TB, file has 24 bytes",
    }.items():
        path.write_bytes(content)
        with pytest.raises(UserError) as caught:
            load_tensors(path)
        assert caught.value.message == message
    with path.open("wb") as file:
        file.write((20_000_000).to_bytes(8, "little"))
        file.truncate(20_000_008)
    with pytest.raises(UserError, match=r"header of 20 MB is above 16 MB"):
        load_tensors(path)


def test_the_library_alone_would_take_a_name_twice(tmp_path: Path) -> None:
    """The negative control of our own check."""
    twice = raw_file(tmp_path / "x", f'{{"a":{entry(0, 4)},"a":{entry(0, 4)}}}', bytes(4))
    assert safetensors.torch.load_file(twice).keys() == {"a"}
    with pytest.raises(UserError, match="tensor a is listed twice"):
        load_tensors(twice)


def test_headers_at_the_limits_load(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    names = ",".join(f'"{i}":{entry(0, 0)}' for i in range(100_000))
    assert len(load_tensors(raw_file(path, "{" + names + "}"))) == 100_000
    assert load_tensors(raw_file(path, "{}" + " " * 6)) == {}
    found = load_tensors(raw_file(path, f'{{"a":{entry(0, 0, [0, 2**40])}}}'))
    assert found["a"].shape == (0, 2**40)


OFFSET = st.one_of(st.integers(-2, 20), st.sampled_from([2**31, 2**63, 2**64, 10**30]))
ENTRY = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["U8", "F32", "BF16", "F4", "", 3]),
        "shape": st.lists(OFFSET, max_size=4),
        "data_offsets": st.lists(OFFSET, min_size=1, max_size=3),
    }
)
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=4)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=6,
)
NAME = st.sampled_from(["a", "b", "c", "__metadata__", ""])


@settings(max_examples=500, deadline=None, derandomize=True)
@given(header=st.dictionaries(NAME, st.one_of(ENTRY, JSON), max_size=4), size=st.integers(0, 24))
def test_any_header_gives_tensors_within_the_file_or_one_error(
    tmp_path_factory: pytest.TempPathFactory, header: dict[str, object], size: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.safetensors"
    raw_file(path, json.dumps(header), bytes(size))
    found = None
    with contextlib.suppress(UserError):
        found = load_tensors(path)
    if found is not None:
        assert sum(t.numel() * t.element_size() for t in found.values()) == size


@settings(max_examples=300, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32))
def test_flipped_header_is_refused_or_keeps_the_size(
    tmp_path_factory: pytest.TempPathFactory, seed: int
) -> None:
    rng = random.Random(seed)
    data = bytearray(written({"a": torch.zeros(3), "b": torch.zeros(2, 2)}, {"k": "v"}))
    for _ in range(rng.randint(1, 3)):
        data[rng.randrange(0, len(data) - 28)] = rng.randrange(256)
    path = tmp_path_factory.getbasetemp() / "flip.safetensors"
    path.write_bytes(data)
    found = None
    with contextlib.suppress(UserError):
        found = load_tensors(path)
    if found is not None:
        assert sum(t.numel() * t.element_size() for t in found.values()) == 28
