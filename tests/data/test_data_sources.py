"""What shards are made of, how it is encoded, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import encoded, picture, write_tar
from PIL import Image
from support_packing import contents, pack, write_photos

from lit_restore.data.encode import Encoding
from lit_restore.data.inspection import summarise
from lit_restore.data.locate import open_source
from lit_restore.data.packing import write_shards
from lit_restore.data.sources import (
    archive_of_images,
    class_folders,
    folder_of_images,
    paired_folders,
    procedural_images,
)
from lit_restore.errors import UserError


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return write_photos(tmp_path / "photos")


@pytest.mark.parametrize("workers", [1, 2])
def test_damaged_pictures_are_named_and_left_out_up_to_the_limit(
    photos: Path, tmp_path: Path, workers: int
) -> None:
    good = encoded(picture(1), "jpg")
    (photos / "cut.jpg").write_bytes(good[: len(good) // 2])
    (photos / "text.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"cut\.jpg: not a readable JPEG"):
        pack(photos, tmp_path / "none", workers=workers)
    with pytest.raises(UserError, match=r"text\.png: .*more than 1 bad samples"):
        pack(photos, tmp_path / "one", workers=workers, max_bad=1)
    assert pack(photos, tmp_path / "two", workers=workers, max_bad=2).count == 9
    # Shards of damaged pictures alone are left out: 1 and 2, and text, of seven.
    for name in ("1.png", "2.png"):
        (photos / name).write_bytes(b"")
    assert len(pack(photos, tmp_path / "three", max_bad=4).shards) == 5


def test_bad_samples_of_kept_shards_count_again(photos: Path, tmp_path: Path) -> None:
    (photos / "0.png").write_bytes(b"")
    (photos / "zz.png").write_bytes(b"")
    for _ in range(2):  # the second run keeps all shards but the last
        with pytest.raises(UserError, match=r"zz\.png"):
            pack(photos, tmp_path / "out", max_bad=1)
    assert pack(photos, tmp_path / "out", max_bad=2).count == 9


def test_formats_that_are_not_read_are_refused_at_once(photos: Path, tmp_path: Path) -> None:
    (photos / "scan.TIFF").write_bytes(b"II*\0")
    with pytest.raises(UserError, match=r"not scan\.TIFF; convert to PNG"):
        pack(photos, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_two_files_of_one_key_are_refused(photos: Path) -> None:
    for name in ("a_b.png", "a b.jpg"):
        (photos / name).write_bytes(b"")
    with pytest.raises(UserError, match=r"a b\.jpg and a_b\.png have the same key a_b"):
        folder_of_images(photos)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda p: folder_of_images(p / "nowhere"), "no such folder"),
        (lambda p: folder_of_images(p), "no JPEG, PNG or WebP"),
        (lambda p: archive_of_images(p / "x.tar"), "no such file"),
        (lambda p: procedural_images(0, size=64, seed=0), "0 procedural images"),
    ],
)
def test_sources_without_pictures_say_so(
    tmp_path: Path, make: Callable[[Path], object], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        make(tmp_path)


def test_a_folder_that_links_to_itself_ends_with_one_line(photos: Path) -> None:
    (photos / "again").symlink_to(photos)
    with pytest.raises(UserError, match="nested deeper than 32"):
        folder_of_images(photos)


def write_pairs(folder: Path, scale: int, count: int = 3) -> tuple[Path, Path]:
    low, clean = folder / "low", folder / "clean"
    for k in range(count):
        for side, size in ((low, 48 // scale), (clean, 48)):
            (side / "a").mkdir(parents=True, exist_ok=True)
            (side / "a" / f"{k}.png").write_bytes(encoded(picture(k, size, size)))
    return low, clean


def test_pairs_become_two_fields(tmp_path: Path) -> None:
    low, clean = write_pairs(tmp_path, scale=2)
    manifest = write_shards(paired_folders(low, clean), tmp_path / "out", progress=False)
    assert manifest.fields == ("degraded", "image")
    sample = open_source(str(tmp_path / "out"), key="data.train").read(1)
    np.testing.assert_array_equal(sample.image, picture(1, 48, 48))
    assert sample.degraded is not None
    np.testing.assert_array_equal(sample.degraded, picture(1, 24, 24))


def test_pictures_without_a_partner_are_listed_on_both_sides(tmp_path: Path) -> None:
    low, clean = write_pairs(tmp_path, scale=1)
    (low / "a" / "2.png").unlink()
    (clean / "a" / "0.png").unlink()
    with pytest.raises(UserError, match=r"only in \S+low: a/0; only in \S+clean: a/2"):
        paired_folders(low, clean)


def test_pairs_are_cut_into_tiles_that_stay_aligned(tmp_path: Path) -> None:
    low, clean = write_pairs(tmp_path, scale=2, count=1)
    out = tmp_path / "out"
    write_shards(paired_folders(low, clean), out, encoding=Encoding(tile=20), progress=False)
    source = open_source(str(out), key="data.train")
    assert len(source) == 4
    for k, (row, column) in enumerate([(0, 0), (0, 1), (1, 0), (1, 1)]):
        sample = source.read(k)
        assert sample.key.endswith(f"a__0-r{row}c{column}")
        whole, small = picture(0, 48, 48), picture(0, 24, 24)
        rows, columns = slice(20 * row, 20 * row + 20), slice(20 * column, 20 * column + 20)
        np.testing.assert_array_equal(sample.image, whole[rows, columns])
        rows, columns = slice(10 * row, 10 * row + 10), slice(10 * column, 10 * column + 10)
        np.testing.assert_array_equal(sample.degraded, small[rows, columns])


def test_a_pair_without_a_whole_scale_is_bad(tmp_path: Path) -> None:
    low, clean = write_pairs(tmp_path, scale=2)
    (low / "a" / "1.png").write_bytes(encoded(picture(1, 20, 24)))
    with pytest.raises(UserError, match=r"1\.png: is 24x20, its clean picture 48x48"):
        write_shards(paired_folders(low, clean), tmp_path / "out", progress=False)


def test_class_folders_become_labels_in_the_order_of_their_names(
    photos: Path, tmp_path: Path
) -> None:
    manifest = write_shards(class_folders(photos), tmp_path / "out", progress=False)
    assert manifest.classes == ("hill side", "sea")
    source = open_source(str(tmp_path / "out"), key="data.train")
    for k in range(len(source)):
        assert source.read(k).label == int("sea__" in source.key(k))
    (photos / "loose.png").write_bytes(encoded(picture(0)))
    with pytest.raises(UserError, match=r"in no class folder: loose\.png"):
        class_folders(photos)


def test_an_archive_of_pictures_is_packed_like_the_folder(photos: Path, tmp_path: Path) -> None:
    names = sorted(str(p.relative_to(photos)) for p in photos.rglob("*.*"))
    tar = write_tar(tmp_path / "p.tar", [(n, (photos / n).read_bytes()) for n in names])
    write_shards(archive_of_images(tar), tmp_path / "a", per_shard=2, progress=False)
    pack(photos, tmp_path / "b")
    tars = [{k: v for k, v in contents(tmp_path / f).items() if k.endswith("tar")} for f in "ab"]
    assert tars[0] == tars[1]


@pytest.mark.parametrize(("encode", "kind"), [("png", "PNG"), ("webp", "WEBP"), ("jpeg95", "JPEG")])
def test_encodings_are_lossless_or_nearly(
    photos: Path, tmp_path: Path, encode: str, kind: str
) -> None:
    pack(photos, tmp_path / "out", encoding=Encoding(encode=encode))  # type: ignore[arg-type]
    assert list(summarise(tmp_path / "out").formats) == [f"{kind} 8 bits x 3"]
    source = open_source(str(tmp_path / "out"), key="data.train")
    index = next(k for k in range(9) if "hill_side__é_0" in source.key(k))
    error = np.abs(source.read(index).image.astype(int) - picture(0))
    assert error.max() == 0 if encode != "jpeg95" else error.mean() < 3


def test_tiles_of_stored_pictures_are_lossless_and_cover_what_fits(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jpg").write_bytes(encoded(picture(0, 70, 50), "jpg"))
    (tmp_path / "in" / "small.png").write_bytes(encoded(picture(1, 20, 20)))
    with pytest.raises(UserError, match=r"small\.png: smaller than a tile of 24 pixels"):
        pack(tmp_path / "in", tmp_path / "out", encoding=Encoding(tile=24))
    pack(tmp_path / "in", tmp_path / "out", encoding=Encoding(tile=24), max_bad=1)
    source = open_source(str(tmp_path / "out"), key="data.train")
    assert [source.key(k)[-4:] for k in range(len(source))] == [
        f"r{row}c{column}" for row in range(2) for column in range(2)
    ]
    with Image.open(tmp_path / "in" / "a.jpg") as whole:
        expected = np.asarray(whole)[24:48, :24].astype(int)
    assert np.abs(source.read(2).image - expected).max() <= 1
