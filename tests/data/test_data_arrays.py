"""Arrays (latents) into shards, and out of them as `batch["latent"]`."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import encoded, picture, write_tar
from support_packing import contents

from lit_restore.cli.main import main
from lit_restore.data.array_rows import array_rows
from lit_restore.data.batch import Refusal, collate
from lit_restore.data.inspection import verify
from lit_restore.data.locate import open_source
from lit_restore.data.manifest import read_manifest
from lit_restore.data.module import ShardDataModule
from lit_restore.data.order import Order
from lit_restore.data.packing import write_shards
from lit_restore.data.reader import Source, open_shards
from lit_restore.data.samples import Augmentation, TrainingSamples
from lit_restore.data.sources import folder_of_images
from lit_restore.errors import UserError
from lit_restore.io import arrays

LATENTS = np.random.default_rng(0).standard_normal((10, 4, 6, 5)).astype(np.float16)
LABELS = np.arange(10) % 3


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def make(*words: str) -> int:
    return main(["shards", "make", *words, "--workers", "1"])


def rows(source: Source) -> dict[str, np.ndarray]:
    """Key → array."""
    found = {}
    for k in range(len(source)):
        array = source.read(k).array
        assert array is not None
        found[source.key(k).split("/")[1]] = array
    return found


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_rows_of_an_npz_become_samples(here: Path, save: Callable[..., None]) -> None:
    save("l.npz", latents=LATENTS, labels=LABELS)
    options = ("--array", "latents", "--labels", "labels", "--per_shard", "4")
    assert make("l.npz", "--out", "out", *options) == 0
    assert read_manifest(Path("out")).fields == ("array", "label")
    source = open_source("out", key="data.train")
    found = rows(source)
    assert len(found) == 10
    for k in range(10):
        np.testing.assert_array_equal(found[f"{k:08d}"], LATENTS[k], strict=True)
    for k in range(10):
        assert source.read(k).label == LABELS[int(source.key(k).split("/")[1])]
    assert verify(Path("out"), decode=True) == (10, [])


def test_rows_of_an_npy_are_in_order_when_sorted(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save("l.npy", LATENTS)
    np.save("c.npy", LABELS[:, None])
    assert make("l.npy", "--labels", "c.npy", "--out", "out", "--sorted") == 0
    source = open_source("out", key="data.train")
    assert [source.read(k).label for k in range(10)] == list(LABELS)
    capsys.readouterr()
    assert main(["shards", "inspect", "out"]) == 0
    said = capsys.readouterr().out
    assert "fields      array, label" in said
    assert "formats     10 float16 4x6x5" in said
    assert "width" not in said


def test_the_bytes_do_not_depend_on_workers_or_compression(here: Path) -> None:
    np.savez("a.npz", LATENTS)
    np.savez_compressed("b.npz", LATENTS)
    for out, name, workers in (("1", "a.npz", 1), ("2", "a.npz", 2), ("3", "b.npz", 1)):
        write_shards(array_rows(Path(name)), Path(out), per_shard=3, workers=workers)
    tars = [{k: v for k, v in contents(Path(o)).items() if k.endswith("tar")} for o in "123"]
    assert tars[0] == tars[1] == tars[2]


def test_arrays_alone_in_folders(here: Path) -> None:
    for k in range(4):
        folder = Path("in", "cat" if k % 2 else "ant")
        folder.mkdir(parents=True, exist_ok=True)
        if k < 2:
            np.save(folder / f"{k}.npy", LATENTS[k])
        else:
            np.savez(folder / f"{k}.npz", z=LATENTS[k], other=LABELS)
    assert make("in", "--classes", "--array", "z", "--out", "out") == 0
    assert read_manifest(Path("out")).classes == ("ant", "cat")
    source = open_source("out", key="data.train")
    found = rows(source)
    for k in range(4):
        np.testing.assert_array_equal(found[f"{'cat' if k % 2 else 'ant'}__{k}"], LATENTS[k])
    assert make("in", "--out", "other") == 2  # which of the two arrays?


def write_beside(folder: Path) -> None:
    folder.mkdir()
    for k in range(3):
        (folder / f"{k}.png").write_bytes(encoded(picture(k)))
        np.save(folder / f"{k}.npy", LATENTS[k])


def test_arrays_beside_pictures(here: Path) -> None:
    write_beside(Path("in"))
    assert make("in", "--out", "out", "--sorted") == 0
    source = open_source("out", key="data.train")
    for k in range(3):
        np.testing.assert_array_equal(source.read(k).image, picture(k))
        np.testing.assert_array_equal(source.read(k).array, LATENTS[k])


def test_fortran_and_foreign_arrays_are_stored_as_training_reads_them(here: Path) -> None:
    Path("in").mkdir()
    np.save("in/a.npy", np.asfortranarray(LATENTS[0]))
    np.save("in/b.npy", LATENTS[1].astype(">f2"))
    assert make("in", "--out", "out", "--sorted") == 0
    found = rows(open_source("out", key="data.train"))
    for k, name in enumerate("ab"):
        np.testing.assert_array_equal(found[name], LATENTS[k])
        torch.from_numpy(found[name])


def save_bomb() -> None:
    with zipfile.ZipFile("x.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", arrays.npy_bytes(np.zeros((40, 1 << 20), np.uint8)))


def save_in(name: str, data: bytes) -> None:
    Path("in").mkdir(exist_ok=True)
    Path("in", name).write_bytes(data)


def npz(**content: object) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, **content)  # type: ignore[arg-type]
    return stream.getvalue()


def cut() -> None:
    np.savez("x.npz", a=LATENTS)
    Path("x.npz").write_bytes(Path("x.npz").read_bytes()[:-40])


OBJECTS = np.array([{}, []], dtype=object)


@pytest.mark.parametrize(
    ("prepare", "words", "line"),
    [
        (lambda: np.savez("x.npz", a=OBJECTS), "x.npz", "x.npz: a.npy: holds Python objects"),
        (lambda: np.savez("x.npz", a=np.array(["x"])), "x.npz", "x.npz: a.npy: holds <U1, not num"),
        (lambda: np.savez("x.npz", a=LATENTS, b=LABELS), "x.npz", "x.npz: holds a, b; name one"),
        (lambda: np.savez("x.npz", a=LATENTS), "x.npz --array z", "x.npz: holds no array z, but a"),
        (lambda: np.savez("x.npz", a=np.float32(1)), "x.npz", "x.npz: a.npy: is a single number"),
        (lambda: np.savez("x.npz", a=LATENTS[:0]), "x.npz", "x.npz: a.npy: is empty"),
        (lambda: np.save("x.npy", LATENTS.T), "x.npy", "x.npy: its rows are not stored one after"),
        (lambda: np.save("x.npy", LATENTS), "x.npy --array a", "x.npy: a .npy holds one array"),
        (lambda: np.save("x.npy", LATENTS), "x.npy --labels a", "--labels: give a .npy file besi"),
        (save_bomb, "x.npz", "x.npz: a.npy: 41 KB inflates to 42 MB, refused"),
        (cut, "x.npz", "x.npz: not a readable .npz"),
        (lambda: Path("x.npz").write_bytes(b"PK"), "x.npz", "x.npz: not a readable .npz"),
        (lambda: Path("x.npy").write_bytes(b"PK"), "x.npy", "x.npy: not a readable .npy array"),
        (
            lambda: np.savez("x.npz", a=LATENTS, b=LABELS[:4]),
            "x.npz --array a --labels b",
            "x.npz: b: int64 (4,) are no class numbers of 10 rows",
        ),
        (
            lambda: np.savez("x.npz", a=LATENTS, b=LABELS - 1),
            "x.npz --array a --labels b",
            "x.npz: b: class number -1 is negative",
        ),
        (
            lambda: np.savez("x.npz", a=LATENTS, b=LABELS * 1.0),
            "x.npz --array a --labels b",
            "x.npz: b: float64 (10,) are no class numbers",
        ),
        (lambda: save_in("a.npz", npz(a=OBJECTS)), "in", "in/a.npz: a.npy: holds Python objects"),
        (lambda: save_in("a.npz", b"x"), "in", "in/a.npz: not a readable .npz"),
        (lambda: save_in("a.npy", b"x"), "in", "in/a.npy: not a readable .npy array"),
        (lambda: save_in("a.npz", npz(a=LABELS)), "in --labels a", "--labels: needs a .npy or .n"),
        (lambda: save_in("a.tar", b""), "in/a.tar --array a", "--array: needs a .npy or .npz file"),
        (None, "--procedural 2 --array a", "--array: not with --procedural"),
        (None, "in --pairs in --labels a", "--labels: not with --pairs"),
    ],
)  # fmt: skip
def test_what_cannot_be_packed_is_one_line_and_code_2(
    here: Path,
    capsys: pytest.CaptureFixture[str],
    prepare: Callable[[], object] | None,
    words: str,
    line: str,
) -> None:
    if prepare is not None:
        prepare()
    assert make(*words.split(), "--out", "out") == 2
    told = capsys.readouterr().err
    assert told.startswith(f"error: {line}"), told
    assert told.count("\n") == 1
    assert not list(Path().glob("out/*.tar"))


def test_rows_above_the_size_of_a_member_are_refused(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lit_restore.io.archive.MEMBER_LIMIT", 100)
    np.savez("x.npz", a=LATENTS)
    with pytest.raises(UserError, match=r"x\.npz: 240 bytes a row is above 100 bytes"):
        array_rows(Path("x.npz"))


def test_arrays_that_do_not_match_the_pictures_are_named(here: Path) -> None:
    write_beside(Path("in"))
    Path("in/1.npy").rename("in/mean.npy")
    assert make("in", "--out", "out") == 2
    with pytest.raises(UserError, match=r"without an array: 1\.png; without a picture.*mean\.npy"):
        folder_of_images(Path("in"))


def test_arrays_are_not_cut_into_tiles(here: Path) -> None:
    np.save("x.npy", LATENTS)
    assert make("x.npy", "--tile", "16", "--out", "out") == 2


def latent_module(out: str, **options: object) -> ShardDataModule:
    return ShardDataModule(
        train=out, val=out, global_batch=4, val_batch=3, workers=0, total_samples=20, **options
    )  # type: ignore[arg-type]


def test_latents_are_trained_on_without_a_picture(here: Path) -> None:
    np.savez("l.npz", latents=LATENTS, labels=LABELS)
    assert make("l.npz", "--array", "latents", "--labels", "labels", "--out", "out") == 0
    data = latent_module("out", crop=None)
    data.setup("fit")
    seen: list[int] = []
    for batch in data.train_dataloader():
        assert not isinstance(batch, Refusal)
        moved = data.on_after_batch_transfer(batch, 0)
        assert moved["image"].shape == (4, 3, 0, 0)
        for key, latent, label in zip(batch["key"], batch["latent"], batch["label"], strict=True):
            row = int(key.split("/")[1])
            np.testing.assert_array_equal(latent.numpy(), LATENTS[row], strict=True)
            assert label == LABELS[row]
            seen.append(row)
    assert sorted(seen) == sorted(2 * list(range(10)))
    whole = data.val_dataloader()
    assert sum(float(batch["weight"].sum()) for batch in whole) == 10  # type: ignore[call-overload]


def test_a_crop_of_latents_is_refused_before_training(here: Path) -> None:
    np.save("x.npy", LATENTS)
    assert make("x.npy", "--out", "out") == 0
    with pytest.raises(UserError, match=r"holds no image to crop; set data\.crop to null"):
        latent_module("out", crop=64).setup("fit")
    with pytest.raises(UserError, match=r"holds no image to crop; set data\.val_crop to null"):
        latent_module("out", crop=None, val_crop=64).setup("fit")


def test_a_picture_that_lacks_among_pictures_is_still_bad(tmp_path: Path) -> None:
    npy = arrays.npy_bytes(LATENTS[0])
    members = [("a.png", encoded(picture(0))), ("a.npy", npy), ("b.npy", npy)]
    source = open_shards([write_tar(tmp_path / "x.tar", members)])
    assert source.read(0).image.size
    with pytest.raises(UserError, match=r"b: the sample has no image"):
        source.read(1)


def test_arrays_of_two_shapes_are_refused_in_one_line(here: Path) -> None:
    Path("in").mkdir()
    np.save("in/a.npy", LATENTS[0])
    np.save("in/b.npy", LATENTS[1, :2])
    assert make("in", "--out", "out", "--sorted") == 0
    source = open_source("out", key="data.train")
    whole = Augmentation(crop=None, flip=True, rotate=True)
    order = Order(source.counts, seed=0, window=0)
    samples = TrainingSamples(source, order, augmentation=whole, seed=0)
    refused = collate([samples[0], samples[1]])
    assert isinstance(refused, Refusal)
    said = "arrays float16 (2, 6, 5) and float16 (4, 6, 5) do not fit into one batch"
    assert refused.message == said
