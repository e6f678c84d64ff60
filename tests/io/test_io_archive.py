"""A tar is read where it lies; what could hurt another reader is refused in one line."""

from __future__ import annotations

import contextlib
import gzip
import io
import random
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_restore.errors import UserError
from lit_restore.io import archive, fs
from lit_restore.io.archive import Member, sample_key, scan_tar

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}


def tar(
    *members: tuple[str, bytes] | tarfile.TarInfo, format: str = "pax", encoding: str = "utf-8"
) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(
        fileobj=buffer, mode="w", format=FORMATS[format], encoding=encoding
    ) as writer:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                writer.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                writer.addfile(info, io.BytesIO(member[1]))
    return buffer.getvalue()


def special(name: str, kind: bytes, **fields: object) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = kind
    for key, value in fields.items():
        setattr(info, key, value)
    return info


def with_size(data: bytes, size: bytes) -> bytes:
    """The same archive, its first header's size field replaced and summed again."""
    header = bytearray(data[:512])
    header[124:136] = size
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + data[512:]


def refusal(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    with pytest.raises(UserError) as caught:
        scan_tar(path)
    assert caught.value.where == str(path)
    return caught.value.message


GOOD = tar(("a.jpg", b"x" * 700), ("a.txt", b"1"), ("b.jpg", b"y" * 600), ("b.txt", b"2"))
TB = (1_100_000_000_000).to_bytes(12, "big")
TB_SIZE = b"\x80" + TB[1:]

CORPUS: dict[str, tuple[Callable[[], bytes], str]] = {
    "tar_zero": (lambda: b"", "empty file"),
    "tar_html": (
        lambda: b"<!DOCTYPE html><title>403</title>" + b" " * 900,
        "HTML page, not a tar (expired link?)",
    ),
    "tar_cut": (
        lambda: tar(("a.jpg", b"x"), ("b.jpg", bytes(900)))[:1800],
        "ends inside b.jpg at byte 1800",
    ),
    "tar_border": (lambda: GOOD[:2560], "no end mark: cut after a.txt?"),
    "tar_cut_header": (lambda: GOOD[:1700], "ends inside a header at byte 1700"),
    "tar_gzip": (
        lambda: gzip.compress(GOOD),
        "gzip-compressed, cannot be read in place; unpack it first",
    ),
    "tar_header": (lambda: b"\x01" * 2048, "bad header at byte 0"),
    "tar_text": (lambda: b"hello", "bad header at byte 0"),
    "tar_flipped": (lambda: GOOD[:1537] + b"?" + GOOD[1538:], "bad header at byte 1536"),
    "tar_dotdot": (
        lambda: tar(("../../etc/x.jpg", b"x")),
        'member "../../etc/x.jpg" refused (path)',
    ),
    "tar_abs": (lambda: tar(("/etc/x.jpg", b"x")), 'member "/etc/x.jpg" refused (path)'),
    "tar_backslash": (lambda: tar(("..\\x.jpg", b"x")), 'member "..\\x.jpg" refused (path)'),
    "tar_nul": (
        lambda: tar(("a.jpg" + "é" * 3, b"x")).replace("é".encode() * 3, b"\0bcdef"),
        'member "a.jpg\\x00bcdef" refused (path)',
    ),
    "tar_long": (
        lambda: tar(("a" * 5000, b"x")),
        f'member "{"a" * 79}…" refused (name above 4 KB)',
    ),
    "tar_gnu_long": (
        lambda: tar(("a" * 5000, b"x"), format="gnu"),
        "a name record of 5.0 KB at byte 0 is refused",
    ),
    "tar_symlink": (
        lambda: tar(special("l.jpg", tarfile.SYMTYPE, linkname="/etc/passwd")),
        'member "l.jpg" is a symlink, refused',
    ),
    "tar_hardlink": (
        lambda: tar(special("l.jpg", tarfile.LNKTYPE, linkname="a.jpg")),
        'member "l.jpg" is a hard link, refused',
    ),
    "tar_device": (
        lambda: tar(special("l.jpg", tarfile.CHRTYPE)),
        'member "l.jpg" is a device, refused',
    ),
    "tar_fifo": (
        lambda: tar(special("l.jpg", tarfile.FIFOTYPE)),
        'member "l.jpg" is a FIFO, refused',
    ),
    "tar_sparse": (
        lambda: tar(special("l.jpg", tarfile.GNUTYPE_SPARSE)),
        'member "l.jpg" is a sparse file, refused',
    ),
    "tar_pax_sparse": (
        lambda: tar(special("l.jpg", tarfile.REGTYPE, pax_headers={"GNU.sparse.major": "1"})),
        'member "l.jpg" is a sparse file, refused',
    ),
    "tar_huge": (
        lambda: with_size(tar(("a.jpg", b"x"))[:1024], TB_SIZE),
        "a.jpg says 1.1 TB, file has 1024 bytes",
    ),
    "tar_dup": (lambda: tar(("a.jpg", b"x"), ("a.jpg", b"y")), "a.jpg appears twice"),
    "tar_split": (
        lambda: tar(("a.jpg", b"x"), ("b.jpg", b"y"), ("a.txt", b"1")),
        'sample "a" is split; repack with shards make',
    ),
    "tar_joined": (
        lambda: GOOD + tar(("c.jpg", b"z")),
        "data after the end mark at byte 5120 (two archives joined?); repack with shards make",
    ),
    "tar_empty": (lambda: tar(), "no files in this archive"),
    "tar_latin": (
        lambda: tar(("é.jpg", b"x"), format="ustar", encoding="latin-1"),
        "member name at byte 0 is not UTF-8; repack with shards make",
    ),
}


@pytest.mark.parametrize("case", CORPUS)
def test_refused_archive_says_why_in_one_line(tmp_path: Path, case: str) -> None:
    build, message = CORPUS[case]
    assert refusal(tmp_path / "s.tar", build()) == message


def test_member_above_the_limit_is_refused_even_if_the_file_holds_it(tmp_path: Path) -> None:
    path = tmp_path / "s.tar"
    path.write_bytes(tar(("a.jpg", bytes(3000))))
    with pytest.raises(UserError, match=r"a\.jpg says 3\.0 KB, limit 2\.0 KB"):
        scan_tar(path, member_limit=2000)
    assert len(scan_tar(path, member_limit=3000)) == 1


@pytest.mark.parametrize("format", FORMATS)
def test_good_archive_lists_the_bytes_of_every_file(tmp_path: Path, format: str) -> None:
    files = {
        f"d/{i}/{'n' * (20 * i if format != 'ustar' else 3)}.x": b"%d" % i * i for i in range(9)
    }
    folder = special("d", tarfile.DIRTYPE)
    path = tmp_path / "s.tar"
    path.write_bytes(tar(folder, *files.items(), format=format))
    data = path.read_bytes()
    found = {m.name: data[m.offset : m.offset + m.size] for m in scan_tar(path)}
    assert found == files


def test_names_of_non_ascii_characters_are_read_in_every_format(tmp_path: Path) -> None:
    for format in FORMATS:
        (tmp_path / format).write_bytes(tar(("fußball/日本.jpg", b"x"), format=format))
        assert [m.name for m in scan_tar(tmp_path / format)] == ["fußball/日本.jpg"]


def test_base_256_and_pax_sizes_are_read(tmp_path: Path) -> None:
    path = tmp_path / "s.tar"
    path.write_bytes(with_size(tar(("a.jpg", b"x" * 600)), b"\x80" + (600).to_bytes(11, "big")))
    assert scan_tar(path) == [Member("a.jpg", 512, 600)]
    info = special("a.jpg", tarfile.REGTYPE, size=600, pax_headers={"size": "600"})
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as writer:
        writer.addfile(info, io.BytesIO(bytes(600)))
    path.write_bytes(buffer.getvalue())
    assert scan_tar(path) == [Member("a.jpg", 1536, 600)]


def test_what_webdataset_writes_is_read(tmp_path: Path) -> None:
    path = tmp_path / "s.tar"
    with webdataset.TarWriter(str(path)) as writer:
        for i in range(3):
            writer.write({"__key__": f"{i:04d}", "jpg": b"x" * i, "cls": i})
    assert [m.name for m in scan_tar(path)] == [
        f"{i:04d}.{e}" for i in range(3) for e in ("cls", "jpg")
    ]


def test_remarks_of_other_programs_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "s.tar"
    path.write_bytes(
        tar(
            ("._a.jpg", b"m"),
            ("a.jpg", b"x"),
            ("__MACOSX/a", b"m"),
            ("__meta__", b"m"),
            ("a.txt", b"1"),
        )
    )
    assert [m.name for m in scan_tar(path)] == ["a.jpg", "a.txt"]


def test_interleaved_files_pass_where_they_are_no_samples(tmp_path: Path) -> None:
    path = tmp_path / "w.tar"
    path.write_bytes(tar(("a.pth", b"x"), ("b.pth", b"y"), ("a.yaml", b"1")))
    assert len(scan_tar(path, samples=False)) == 3


@pytest.mark.parametrize(
    ("name", "key"),
    [("a.jpg", "a"), ("d.e/a.b.jpg", "d.e/a"), ("d/a", None), ("./a.seg.png", "./a"), (".x", None)],
)
def test_sample_key_is_webdatasets(name: str, key: str | None) -> None:
    assert sample_key(name) == key
    assert sample_key(name) == webdataset.tariterators.base_plus_ext(name)[0]


def test_scan_reads_headers_and_not_the_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "s.tar"
    path.write_bytes(tar(*((f"{i}.x", bytes(400_000)) for i in range(20))))
    read = []

    def counting(file: io.BufferedReader, size: int, offset: int) -> bytes:
        read.append(size)
        return original(file, size, offset)

    original = fs.pread
    monkeypatch.setattr(fs, "pread", counting)
    assert len(scan_tar(path)) == 20
    assert sum(read) < 500_000


def test_small_members_share_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "s.tar"
    path.write_bytes(tar(*((f"{i}.x", b"1") for i in range(1000)), format="ustar"))
    calls = []
    original = fs.pread
    monkeypatch.setattr(fs, "pread", lambda *a: calls.append(a) or original(*a))
    assert len(scan_tar(path)) == 1000
    assert len(calls) < 10


NAMES = st.lists(
    st.text(
        st.characters(codec="utf-8", exclude_characters="\0\\/", exclude_categories=["Cs"]),
        min_size=1,
        max_size=150,
    ).filter(lambda s: s not in ("..", ".") and not s.startswith(("._", "__"))),
    min_size=1,
    max_size=4,
    unique=True,
)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(names=NAMES, format=st.sampled_from(["gnu", "pax"]), size=st.integers(0, 1500))
def test_scan_equals_tarfile(
    tmp_path_factory: pytest.TempPathFactory, names: list[str], format: str, size: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "equal.tar"
    path.write_bytes(tar(*((name, bytes(size)) for name in names), format=format))
    with tarfile.open(path) as reader:
        expected = [Member(i.name, i.offset_data, i.size) for i in reader]
    assert scan_tar(path, samples=False) == expected


@settings(max_examples=300, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32), edits=st.integers(1, 6), format=st.sampled_from(list(FORMATS)))
def test_damaged_archive_gives_members_inside_the_file_or_one_error(
    tmp_path_factory: pytest.TempPathFactory, seed: int, edits: int, format: str
) -> None:
    rng = random.Random(seed)
    long = "d/" + "n" * 90 + ".jpg" if format == "ustar" else "n" * 140 + ".jpg"
    data = bytearray(tar(("a.jpg", b"x" * 30), (long, b"y" * 600), ("é.txt", b"2"), format=format))
    for _ in range(edits):
        at = rng.randrange(0, 4096)
        kind = rng.randrange(3)
        if kind == 0 and at < len(data):
            data[at] = rng.randrange(256)
        elif kind == 1:
            del data[rng.randrange(len(data)) :]
        else:
            block = data[512 * (at // 512) :][:512]
            if len(block) == 512:  # damage that the checksum does not catch
                for _ in range(3):
                    block[rng.randrange(0, 512)] = rng.choice(b"\x00\x80\xff01SLxg/.\\")
                block[148:156] = b" " * 8
                block[148:156] = b"%06o\0 " % sum(block)
                data[512 * (at // 512) : 512 * (at // 512) + 512] = block
    path = tmp_path_factory.getbasetemp() / "fuzz.tar"
    path.write_bytes(data)
    members = []
    with contextlib.suppress(UserError):
        members = scan_tar(path)
    for member in members:
        assert 0 <= member.offset <= member.offset + member.size <= len(data)
        assert ".." not in member.name.split("/")


def test_without_the_checks_the_refused_archive_would_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "s.tar"
    path.write_bytes(tar(("../x.jpg", b"x")))
    monkeypatch.setattr(archive, "_check_path", lambda name, where: None)
    assert [m.name for m in scan_tar(path)] == ["../x.jpg"]
