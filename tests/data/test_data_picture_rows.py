"""Pictures that are rows of an array, or files laid end to end in one."""

from __future__ import annotations

import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import encoded, picture
from support_packing import contents, interrupted, write_photos

from lit_restore.cli.main import main
from lit_restore.data.array_rows import picture_files, picture_rows
from lit_restore.data.decode import decode_image
from lit_restore.data.encode import Encoding
from lit_restore.data.inspection import summarise, verify
from lit_restore.data.locate import open_source
from lit_restore.data.manifest import read_manifest
from lit_restore.data.packing import write_shards
from lit_restore.data.pixels import adm_square
from lit_restore.data.sources import folder_of_images, procedural_images

GREY = np.random.default_rng(0).integers(0, 256, (10, 28, 26), dtype=np.uint8)
COLOUR = np.random.default_rng(1).integers(0, 256, (10, 3, 18, 14), dtype=np.uint8)
LABELS = np.arange(10) % 3


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def make(*words: str) -> int:
    return main(["shards", "make", *words, "--workers", "1"])


def read(folder: str) -> dict[int, tuple[np.ndarray, int | None]]:
    """Row → picture and label."""
    source = open_source(folder, key="data.train")
    samples = [source.read(k) for k in range(len(source))]
    return {int(s.key.split("/")[1]): (s.image, s.label) for s in samples}


def as_rgb(pixels: np.ndarray) -> np.ndarray:
    return pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=2)


@pytest.mark.parametrize(
    ("rows", "options", "expected", "channels"),
    [
        (GREY, (), GREY, 1),
        (GREY[..., None], (), GREY, 1),
        (GREY[:, None], (), GREY, 1),
        (COLOUR.transpose(0, 2, 3, 1), (), COLOUR.transpose(0, 2, 3, 1), 3),
        (COLOUR, (), COLOUR.transpose(0, 2, 3, 1), 3),
        (COLOUR.reshape(10, -1), ("--shape", "3x18x14"), COLOUR.transpose(0, 2, 3, 1), 3),
        (GREY.reshape(10, -1), ("--shape", "28x26"), GREY, 1),
    ],
)
def test_pixels_become_pictures_with_every_level_as_it_was(
    here: Path, rows: np.ndarray, options: tuple[str, ...], expected: np.ndarray, channels: int
) -> None:
    np.savez("x.npz", x=np.ascontiguousarray(rows), y=LABELS)
    words = ("--array", "x", "--labels", "y", "--pictures", "--per_shard", "4")
    assert make("x.npz", *words, *options, "--out", "out") == 0
    assert read_manifest(Path("out")).fields == ("image", "label")
    found = read("out")
    assert sorted(found) == list(range(10))
    for row, (image, label) in found.items():
        np.testing.assert_array_equal(image, as_rgb(expected[row]), strict=True)
        assert label == LABELS[row]
    assert list(summarise(Path("out")).formats) == [f"PNG 8 bits x {channels}"]
    assert verify(Path("out"), decode=True) == (10, [])


def test_padding_puts_the_picture_into_the_middle_of_zeros(here: Path) -> None:
    np.save("x.npy", GREY[:, :, :25])
    assert make("x.npy", "--pictures", "--pad", "32", "--out", "out") == 0
    for row, (image, label) in read("out").items():
        expected = np.pad(GREY[row][:, :25], ((2, 2), (3, 4)))  # the odd column at the right
        np.testing.assert_array_equal(image, as_rgb(expected))
        assert label is None


def write_files(path: str, *, save: Callable[..., None] = np.savez) -> list[bytes]:
    """Ten files of two formats in one array, two of them grey."""
    files = []
    for k in range(10):
        pixels = picture(k, 60, 50)
        shown = pixels[..., 0] if k in (2, 5) else pixels
        files.append(encoded(shown, "png" if k % 2 else "jpg"))
    data = np.frombuffer(b"".join(files), np.uint8)
    save(path, data=data, at=np.cumsum([0, *map(len, files)]), y=LABELS.astype(np.int16))
    return files


def test_files_in_an_array_keep_their_bytes_and_are_read_as_rgb(here: Path) -> None:
    files = write_files("f.npz")
    words = ("f.npz", "--array", "data", "--offsets", "at", "--labels", "y", "--out", "out")
    assert make(*words) == 0
    with tarfile.open("out/train-000000.tar") as tar:
        for row, file in enumerate(files):
            member = tar.extractfile(f"{row:08d}.{'png' if row % 2 else 'jpg'}")
            assert member is not None
            assert member.read() == file
    for row, (image, label) in read("out").items():
        assert image.shape == (60, 50, 3)
        assert label == LABELS[row]
        assert (np.ptp(image, axis=2).max() == 0) == (row in (2, 5))


def test_resizing_cuts_the_middle_square_as_adm_does(here: Path) -> None:
    files = write_files("f.npz")
    assert make("f.npz", "--array", "data", "--offsets", "at", "--resize", "20", "--out", "a") == 0
    for row, (image, _) in read("a").items():
        whole = decode_image(files[row], name="")
        np.testing.assert_array_equal(image, adm_square(whole, 20), strict=True)
    np.save("g.npy", GREY)
    assert make("g.npy", "--pictures", "--resize", "13", "--out", "g") == 0
    assert list(summarise(Path("g")).formats) == ["PNG 8 bits x 1"]
    for row, (image, _) in read("g").items():
        np.testing.assert_array_equal(image, adm_square(as_rgb(GREY[row]), 13))


@pytest.mark.parametrize(("option", "side"), [("resize", 24), ("pad", 50)])
def test_folders_are_resized_and_padded_too(here: Path, option: str, side: int) -> None:
    write_photos(Path("photos"))
    assert make("photos", f"--{option}", str(side), "--out", "out", "--sorted") == 0
    source = open_source("out", key="data.train")
    assert list(summarise(Path("out")).formats) == ["WEBP 8 bits x 3"]
    for k, item in enumerate(folder_of_images(Path("photos")).items):
        whole = decode_image(item.parts[0].read(), name="")
        margin = ((5, 5), (1, 1), (0, 0))
        expected = adm_square(whole, side) if option == "resize" else np.pad(whole, margin)
        np.testing.assert_array_equal(source.read(k).image, expected, strict=True)


def test_the_bytes_depend_on_nothing_but_the_pictures(here: Path) -> None:
    np.savez("a.npz", x=COLOUR)
    np.savez_compressed("b.npz", x=COLOUR)
    padded = Encoding(pad=20)

    def pack(name: str, out: str, workers: int = 1) -> dict[str, bytes]:
        rows = picture_rows(Path(name), array="x", labels=None).shuffled()
        write_shards(rows, Path(out), per_shard=3, encoding=padded, workers=workers)
        return contents(Path(out))

    whole = pack("a.npz", "one")
    with interrupted(after=4):
        pack("a.npz", "broken")
    assert list(Path("broken").glob("*.tar"))
    assert pack("a.npz", "broken") == pack("a.npz", "two", workers=2) == whole
    packed = pack("b.npz", "other")
    for name in whole.keys() - {"manifest.json"}:
        assert packed[name] == whole[name]


def test_rows_read_in_another_shape_are_another_set(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save("x.npy", GREY.reshape(10, -1))
    assert make("x.npy", "--pictures", "--shape", "28x26", "--out", "out") == 0
    assert make("x.npy", "--pictures", "--shape", "26x28", "--out", "out") == 2
    assert "holds shards of other input or options" in capsys.readouterr().err


def test_class_names_stand_in_the_manifest(here: Path) -> None:
    np.savez("x.npz", x=GREY, y=LABELS)
    Path("names.txt").write_text("T-shirt/top\nhigh boot\ncoat\n\n")
    words = ("--array", "x", "--labels", "y", "--class_names", "names.txt", "--pictures")
    assert make("x.npz", *words, "--out", "out") == 0
    assert read_manifest(Path("out")).classes == ("T-shirt/top", "high boot", "coat")


def test_options_added_later_leave_older_plans_as_they_are(tmp_path: Path) -> None:
    shipped = Path(__file__).parents[2] / "data" / "fixture"
    shutil.copytree(shipped, tmp_path / "fixture", ignore=shutil.ignore_patterns(".index"))
    pictures = procedural_images(16, size=96, seed=0)
    again = write_shards(pictures, tmp_path / "fixture", per_shard=8, progress=False)
    assert again == read_manifest(shipped)


def test_a_damaged_file_is_named_by_its_place(here: Path) -> None:
    files = write_files("f.npz")
    held = np.load("f.npz")
    data = held["data"].copy()
    data[held["at"][3] :][: len(files[3])] = 0
    np.savez("f.npz", data=data, at=held["at"])
    collection = picture_files(Path("f.npz"), array="data", offsets="at")
    with pytest.raises(ValueError, match=r"^f\.npz: data\[3\]: not a readable"):
        write_shards(collection, Path("out"), progress=False)
    assert write_shards(collection, Path("out"), max_bad=1, progress=False).count == 9


def save(**arrays: np.ndarray) -> Callable[[], None]:
    return lambda: np.savez("x.npz", **arrays)  # type: ignore[arg-type]


DATA, AT = np.zeros(30, np.uint8), np.array([0, 10, 30])
FILES = "--array a --offsets o"


@pytest.mark.parametrize(
    ("prepare", "words", "line"),
    [
        (save(a=GREY / 255), "--pictures", "x.npz: float64 are no levels 0 to 255; save them as"),
        (save(a=GREY.reshape(10, -1)), "--pictures", "x.npz: rows of 728 numbers are flat; give"),
        (save(a=GREY.reshape(10, -1)), "--pictures --shape 28x28", "--shape: rows of 728 numbers"),
        (save(a=GREY), "--pictures --shape 28", "--shape: 28 is no shape; give 28x28, or 3x32x32"),
        (save(a=GREY), "--shape 28x26", "--shape: needs --pictures"),
        (save(a=GREY), "--pad 32", "--pad: needs --pictures"),
        (save(a=GREY), "--pictures --sorted --pad 20", "x.npz: row[0]: is 26x28, larger than --p"),
        (save(a=GREY), "--pictures --pad 0", "pad: 0 is below 1"),
        (save(a=GREY), "--pictures --pad 8000", "pad: 8000x8000 is above 50 megapixels"),
        (save(a=GREY), "--pictures --pad 32 --resize 32", "pad: not with --resize; give one"),
        (save(a=COLOUR[:, :, :, :3]), "--pictures", "x.npz: rows of 3x18x3 could be HxWxC or CxH"),
        (save(a=GREY[:, None].repeat(4, 1)), "--pictures", "x.npz: rows of 4x28x26 are no pict"),
        (save(a=GREY, y=LABELS), "--pictures --array a --labels z", "x.npz: holds no array z"),
        (save(a=GREY), "--pictures --class_names n", "--class_names: the samples have no labels"),
        (
            save(a=GREY, y=LABELS),
            "--pictures --array a --labels y --class_names n",
            "n: 2 names, but there is a class number 2 (the first is 0)",
        ),
        (
            save(a=GREY, y=LABELS),
            "--pictures --array a --labels y --class_names gap",
            "gap: line 2 is empty; give one class name a line",
        ),
        (save(a=DATA, o=AT[:2]), FILES, "x.npz: o: does not rise from 0 to the 30 bytes of the"),
        (save(a=DATA, o=AT[1:]), FILES, "x.npz: o: does not rise from 0 to the 30 bytes of the"),
        (save(a=DATA, o=AT[[0, 1, 1, 2]]), FILES, "x.npz: o: does not rise from 0 to the 30 byt"),
        (save(a=DATA, o=AT / 1), FILES, "x.npz: o: float64 (3,) are no offsets"),
        (save(a=GREY, o=AT), FILES, "x.npz: a: uint8 (10, 28, 26) is not the bytes of files"),
        (save(a=DATA, o=AT), f"{FILES} --shape 3x3", "--shape: not with --offsets"),
    ],
)  # fmt: skip
def test_what_are_no_pictures_is_one_line_and_code_2(
    here: Path,
    capsys: pytest.CaptureFixture[str],
    prepare: Callable[[], None],
    words: str,
    line: str,
) -> None:
    prepare()
    Path("n").write_text("a\nb")
    Path("gap").write_text("a\n\nb\n")
    assert make("x.npz", *words.split(), "--out", "out") == 2
    told = capsys.readouterr().err
    assert told.startswith(f"error: {line}"), told
    assert told.count("\n") == 1
    assert not list(Path().glob("out/*.tar"))


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("photos --pictures", "--pictures: needs a .npy or .npz file"),
        ("photos --offsets o", "--offsets: needs a .npy or .npz file"),
        ("photos --pairs photos --pad 64", "pad: pairs are not resized or padded"),
        ("--procedural 2 --pictures", "--pictures: not with --procedural"),
        ("x.npy --resize 8", "--resize: needs --pictures"),
        ("beside --resize 8", "resize: arrays are not cut, resized or padded"),
        ("narrow --resize 900", "narrow/0.png: is 2x400, too narrow to be scaled to 900"),
    ],
)
def test_what_does_not_go_together_is_one_line(
    here: Path, capsys: pytest.CaptureFixture[str], words: str, line: str
) -> None:
    write_photos(Path("photos"))
    np.save("x.npy", GREY)
    for folder, pixels in (("beside", picture(0)), ("narrow", picture(0, 400, 2))):
        Path(folder).mkdir()
        Path(folder, "0.png").write_bytes(encoded(pixels))
    np.save("beside/0.npy", GREY)
    assert make(*words.split(), "--out", "out") == 2
    assert capsys.readouterr().err.startswith(f"error: {line}")
