"""The same pictures have the same keys in a folder and in an archive."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import encoded, picture, write_tar
from support_evaluation import write_pictures

from lit_restore.errors import UserError
from lit_restore.evaluation.scoring import add_noise
from lit_restore.evaluation.sources import open_source, read_keys

NAMES = ["b/2", "b/10", "a.b", "Z", "c"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_pictures(tmp_path / "data", NAMES)


def keys(*words: object, **options: object) -> list[str]:
    return [item.key for item in open_source(*map(str, words), **options)]


def test_folder_is_searched_and_sorted_by_code_points(folder: Path) -> None:
    (folder / "notes.txt").write_text("no picture")
    (folder / ".hidden.png").write_bytes(b"")
    assert keys(folder) == ["Z", "a.b", "b/10", "b/2", "c"]


def test_archive_has_the_folders_keys_and_content(folder: Path, tmp_path: Path) -> None:
    members = [(f"{name}.png", (folder / f"{name}.png").read_bytes()) for name in NAMES]
    tar = write_tar(tmp_path / "data.tar", [*members, ("README.md", b"x")])
    assert keys(tar) == keys(folder)
    for one, other in zip(open_source(str(tar)), open_source(str(folder)), strict=True):
        assert one.digest() == other.digest()
        assert (one.picture().pixels == other.picture().pixels).all()


def test_prefix_is_a_folder_whose_name_leaves_the_keys(folder: Path, tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "data.tar", [("b/1.png", b""), ("bc/2.png", b"")])
    assert keys(tar, prefix="b/") == keys(tar, prefix="b") == ["1"]
    assert keys(folder, prefix="b") == ["10", "2"]
    with pytest.raises(UserError, match="nothing below --prefix x/; it has b, bc"):
        open_source(str(tar), prefix="x")


def test_keys_select_by_whole_key_or_last_part(folder: Path) -> None:
    assert keys(folder, keys=["c", "10", "b/2"]) == ["b/10", "b/2", "c"]
    with pytest.raises(UserError, match="2 of 3 --keys are not there: 11, d"):
        open_source(str(folder), keys=["11", "c", "d"])
    write_pictures(folder, ["x/10"])
    with pytest.raises(UserError, match="10 is any of b/10, x/10; say which"):
        open_source(str(folder), keys=["10"])


def test_keys_file_has_remarks_and_may_not_be_empty(tmp_path: Path) -> None:
    path = tmp_path / "keys.txt"
    path.write_text("# CBSD68\r\n3096\r\n\n12084\n3096\n")
    assert read_keys(path) == ["3096", "12084"]
    path.write_text("# nothing\n")
    with pytest.raises(UserError, match="holds no keys"):
        read_keys(path)


def test_names_in_either_unicode_form_are_one_key(tmp_path: Path) -> None:
    composed = unicodedata.normalize("NFC", "café")
    decomposed = unicodedata.normalize("NFD", "café")
    data = write_pictures(tmp_path / "data", [decomposed])
    (item,) = open_source(str(data))
    assert item.key == composed
    assert item.picture().pixels.shape == (24, 28, 3)
    assert keys(data, keys=[decomposed]) == [composed]


def test_two_pictures_of_one_key_are_refused(folder: Path) -> None:
    (folder / "c.jpg").write_bytes(encoded(picture(0), "jpg"))
    with pytest.raises(UserError, match=r"c.jpg and .*c.png have the same key c; rename one"):
        open_source(str(folder))


def test_shards_hold_one_clean_picture_a_sample(tmp_path: Path) -> None:
    data = encoded(picture(0))
    members = [(f"0001.{field}", data) for field in ("image.png", "degraded.png", "cls")]
    write_tar(tmp_path / "val-0.tar", members)
    write_tar(tmp_path / "val-1.tar", [("0001.png", data)])
    assert keys(tmp_path / "val-0.tar") == ["0001"]
    assert keys(tmp_path) == ["val-0/0001", "val-1/0001"]


@pytest.mark.parametrize("name", ["skimage", "photographs"])
def test_photographs_come_in_full_size(name: str) -> None:
    items = open_source(name)
    assert [item.key for item in items] == ["astronaut", "chelsea", "coffee"]
    shapes = [item.picture().pixels.shape for item in items]
    assert shapes == [(512, 512, 3), (300, 451, 3), (400, 600, 3)]
    assert len({item.digest() for item in items}) == 3


def test_nothing_there_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no pictures"):
        open_source(str(tmp_path / "empty"))
    with pytest.raises(UserError, match="no such file; did you mean empty"):
        open_source(str(tmp_path / "emptt"))
    write_tar(tmp_path / "x.tar", [("a.txt", b"")])
    with pytest.raises(UserError, match="holds no pictures"):
        open_source(str(tmp_path / "x.tar"))


def test_unreadable_pictures_have_a_digest_of_their_own(folder: Path) -> None:
    items = open_source(str(folder))
    (folder / "c.png").unlink()
    assert items[-1].digest() == "unreadable"
    with pytest.raises(UserError, match="no such file"):
        items[-1].picture()


def test_noise_is_unclipped_and_a_function_of_seed_and_key() -> None:
    clean = torch.full((1, 3, 64, 64), 0.99)
    noise = add_noise(clean, 0.1, seed=0, key="a") - clean
    assert torch.equal(add_noise(clean, 0.1, seed=0, key="a") - clean, noise)
    for seed, key in ((1, "a"), (0, "b")):
        other = add_noise(clean, 0.1, seed=seed, key=key) - clean
        assert abs(float(np.corrcoef(noise.flatten(), other.flatten())[0, 1])) < 0.05
    assert float(noise.std()) == pytest.approx(0.1, rel=0.03)
    assert float((clean + noise).max()) > 1.2
    doubled = add_noise(clean, 0.2, seed=0, key="a") - clean
    assert torch.allclose(doubled, 2 * noise, atol=1e-6)


def test_training_validates_on_the_same_noise() -> None:
    from lit_restore.diffusion import noise_like

    clean = torch.rand(1, 3, 9, 7)
    expected = clean + 0.1 * noise_like(clean, 0, ["a"])[0]
    assert torch.equal(add_noise(clean, 0.1, seed=0, key="a"), expected)
