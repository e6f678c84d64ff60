"""Latents: drawn from what is stored, and stored from pictures, whatever happens meanwhile."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import encoded, picture, write_tar
from support_autoencoder import FACTOR, change_config, save_autoencoder
from support_fork import fork, wait_all
from support_packing import contents

from lit_restore.data.batch import Refusal
from lit_restore.data.inspection import verify
from lit_restore.data.latent_shards import LatentOptions, encode_shards
from lit_restore.data.latents import draw_latent, read_latent_info
from lit_restore.data.locate import open_source
from lit_restore.data.manifest import Manifest, read_manifest
from lit_restore.data.module import ShardDataModule
from lit_restore.data.pixels import adm_square
from lit_restore.data.reader import open_shards
from lit_restore.errors import ExitCode, RankLost, SaveError, UserError
from lit_restore.io import disk, failpoints
from lit_restore.seeding import torch_generator
from lit_restore.weights.autoencoder import load_autoencoder

SIZE = 16
SMALL = LatentOptions(size=SIZE, batch=2)
COUNTS = (3, 2, 3)


# Drawing ------------------------------------------------------------------------------------------


def posteriors(count: int, *halves: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(count, *halves, 2, 4, 3, 5, generator=generator).half()


@pytest.mark.parametrize("halves", [(), (2,)])
def test_a_draw_depends_on_seed_and_position_alone(halves: tuple[int, ...]) -> None:
    stored = posteriors(6, *halves)
    positions: list[int | str] = [7, 3, 12, 0, "shard/key", 5]
    drawn = draw_latent(stored, 1, positions)
    assert drawn.shape == (6, 4, 3, 5)
    assert drawn.dtype == torch.float32
    order = [4, 0, 5, 2, 1, 3]
    again = [draw_latent(stored[[k]], 1, [positions[k]]) for k in order]
    assert torch.equal(torch.cat(again), drawn[order])
    assert not torch.equal(draw_latent(stored, 2, positions), drawn)
    assert not torch.equal(draw_latent(stored[:1], 1, [8]), drawn[:1])


def test_a_draw_is_mean_plus_deviation_times_the_stream_named_posterior() -> None:
    stored = posteriors(4, 2)
    drawn = draw_latent(stored, 9, list(range(4)))
    for position, (moments, latent) in enumerate(zip(stored.float(), drawn, strict=True)):
        mirrored = int(torch.randint(2, (), generator=torch_generator(9, position, "flip")))
        noise = torch.randn(4, 3, 5, generator=torch_generator(9, position, "posterior"))
        assert torch.equal(latent, moments[mirrored, 0] + moments[mirrored, 1] * noise)


def test_draws_have_the_stored_moments_and_mirror_every_other() -> None:
    count = 3000
    stored = torch.zeros(count, 2, 2, 1, 4, 4)
    stored[:, 0, 0], stored[:, 1, 0] = -2, 2  # the means of picture and mirror image
    stored[:, :, 1] = 0.25
    drawn = draw_latent(stored, 0, list(range(count)))
    mirrored = drawn.mean(dim=(1, 2, 3)) > 0
    assert abs(mirrored.float().mean() - 0.5) < 4 * 0.5 / count**0.5
    noise = (drawn - torch.where(mirrored, 2.0, -2.0).view(-1, 1, 1, 1)) / 0.25
    numbers = noise.numel()
    assert abs(noise.mean()) < 4 / numbers**0.5
    assert abs(noise.square().mean() - 1) < 4 * (2 / numbers) ** 0.5
    sides = mirrored.float() - mirrored.float().mean()
    assert abs((sides * noise.mean(dim=(1, 2, 3))).mean()) < 4 * 0.5 * 0.25 / count**0.5


@pytest.mark.parametrize("shape", [(2, 4, 8, 8), (2, 3, 4, 8, 8), (2, 2, 3, 4, 8, 8), (2, 8)])
def test_arrays_that_are_no_posteriors_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match="shards encode"):
        draw_latent(torch.zeros(shape), 0, [0, 1])


# Squares ------------------------------------------------------------------------------------------


def test_a_square_of_the_size_is_kept_and_a_longer_side_cropped_in_the_middle() -> None:
    pixels = picture(0, 20, 20)
    assert np.array_equal(adm_square(pixels, 20), pixels)
    assert np.array_equal(adm_square(picture(0, 20, 33), 20), picture(0, 20, 33)[:, 6:26])
    assert np.array_equal(adm_square(picture(0, 33, 20), 20), picture(0, 33, 20)[6:26])


def test_a_large_picture_is_halved_by_averaging_first() -> None:
    small = np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)
    large = small.repeat(4, 0).repeat(4, 1)
    assert np.array_equal(adm_square(large, 16), small[:, 4:20])
    fine = np.indices((32, 32)).sum(0) % 2 * 200  # finer than the result can show
    flat = adm_square(np.stack([fine] * 3, -1).astype(np.uint8), 16)
    assert (flat == 100).all()


@pytest.mark.parametrize("shape", [(9, 7), (16, 31), (100, 37), (47, 64)])
def test_a_square_of_any_picture_has_the_size(shape: tuple[int, int]) -> None:
    square = adm_square(picture(1, *shape), 16)
    assert square.shape == (16, 16, 3)
    assert np.ptp(square) > 0


# Encoding -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_autoencoder(tmp_path_factory.mktemp("vae"))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three labelled shards of pictures of several sizes."""
    folder = tmp_path_factory.mktemp("photos")
    number = 0
    for shard, count in enumerate(COUNTS):
        members = []
        for _ in range(count):
            members.append((f"a/k{number}.png", encoded(picture(number, 20 + number, 24))))
            members.append((f"a/k{number}.cls", str(number % 3).encode()))
            number += 1
        write_tar(folder / f"p-{shard}.tar", members)
    return folder


def encode(
    photos: Path, vae: Path, out: Path, *, options: LatentOptions = SMALL, processes: int = 1
) -> Manifest:
    source = open_source(str(photos), key="SHARDS")
    devices = ["cpu"] * processes
    return encode_shards(source, vae, out, options=options, devices=devices, progress=False)


@pytest.fixture(scope="module")
def whole(photos: Path, vae: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What an uninterrupted run makes; not to be written to."""
    out = tmp_path_factory.mktemp("whole") / "out"
    encode(photos, vae, out)
    return out


def test_training_reads_the_moments_of_each_square_and_its_mirror_image(
    photos: Path, vae: Path, whole: Path
) -> None:
    model = load_autoencoder(vae)
    source = open_source(str(photos), key="SHARDS")
    expected = {}
    for k in range(len(source)):
        sample = source.read(k)
        square = torch.tensor(adm_square(sample.image, SIZE)).permute(2, 0, 1)[None] / 255
        pair = [torch.cat(model.moments(x)) for x in (square, square.flip(-1))]
        expected[sample.key] = (torch.stack(pair), sample.label)
    data = ShardDataModule(
        train=str(whole), val=None, crop=None, global_batch=4, workers=0, total_samples=8
    )
    data.setup("fit")
    seen = set()
    for batch in data.train_dataloader():
        assert not isinstance(batch, Refusal)
        assert batch["latent"].dtype == torch.float16
        rows = zip(batch["key"], batch["latent"], batch["label"], strict=True)
        for key, stored, label in rows:
            moments, truth = expected[key]
            torch.testing.assert_close(stored.float(), moments, rtol=1e-3, atol=1e-5)
            assert label == truth
            seen.add(key)
        drawn = draw_latent(batch["latent"], 0, batch["position"].tolist())
        assert drawn.shape == (4, 4, SIZE // FACTOR, SIZE // FACTOR)
    assert seen == expected.keys()


def test_the_manifest_says_how_the_latents_were_made(whole: Path, vae: Path) -> None:
    manifest, info = read_manifest(whole), read_latent_info(whole)
    assert manifest.fields == ("array", "label")
    assert [shard.count for shard in manifest.shards] == list(COUNTS)
    assert info.vae == load_autoencoder(vae).info.sha256
    assert (info.size, info.factor, info.scaling_factor) == (SIZE, FACTOR, 0.18215)
    assert info.shape == (2, 2, 4, SIZE // FACTOR, SIZE // FACTOR)
    assert verify(whole, decode=True) == (sum(COUNTS), [])
    assert sorted(p.name for p in whole.iterdir() if p.is_file()) == [
        "manifest.json", "p-0.tar", "p-1.tar", "p-2.tar",
    ]  # fmt: skip


def test_without_mirror_images_and_in_float32(photos: Path, vae: Path, tmp_path: Path) -> None:
    options = dataclasses.replace(SMALL, mirrored=False, dtype="float32")
    encode(photos, vae, tmp_path / "out", options=options)
    source = open_source(str(tmp_path / "out"), key="data.train")
    array = source.read(0).array
    assert array is not None
    assert (array.dtype, array.shape) == (np.float32, (2, 4, 4, 4))
    assert read_latent_info(tmp_path / "out").shape == array.shape


def test_two_processes_make_what_one_makes(
    photos: Path, vae: Path, whole: Path, tmp_path: Path
) -> None:
    encode(photos, vae, tmp_path / "out", processes=2)
    assert contents(tmp_path / "out") == contents(whole)


class Killer(disk.Disk):
    """SIGKILLs this process before its `at`-th change of the disk."""

    def __init__(self, at: int) -> None:
        self.left = at

    def _count(self) -> None:
        self.left -= 1
        if self.left < 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def create(self, path: Path) -> int:
        self._count()
        return super().create(path)

    def fsync(self, fd: int) -> None:
        self._count()
        super().fsync(fd)

    def rename(self, old: Path, new: Path) -> None:
        self._count()
        super().rename(old, new)

    def unlink(self, path: Path) -> None:
        self._count()
        super().unlink(path)


def test_killed_before_any_operation_a_second_run_gives_the_same_bytes(
    photos: Path, vae: Path, whole: Path, tmp_path: Path
) -> None:
    expected = contents(whole)
    killed = kept = 0
    for at in range(1, 60, 3):
        out = tmp_path / f"killed{at}"

        def make(at: int = at, out: Path = out) -> int:
            with disk.using(Killer(at)):
                encode(photos, vae, out)
            return 0

        code = wait_all([fork(make, env={}, output=tmp_path / "log")], 60)[0]
        if code == 0:
            break
        assert code == -signal.SIGKILL
        killed += 1
        kept += any(out.glob("p-*.tar"))
        encode(photos, vae, out)
        assert contents(out) == expected
    assert killed > 5
    assert kept > 3


@pytest.mark.parametrize("processes", [1, 2])
def test_killed_inside_a_shard_the_finished_ones_are_kept(
    photos: Path, vae: Path, whole: Path, tmp_path: Path, processes: int
) -> None:
    out = tmp_path / "out"

    def make() -> int:
        with failpoints.armed("data.decode=kill@5"):
            try:
                encode(photos, vae, out, processes=processes)
            except RankLost as error:
                return int(error.code)
        return 0

    code = wait_all([fork(make, env={}, output=tmp_path / "log")], 60)[0]
    # One process makes 3 shards of 8 pictures and dies in the second; of two, the first has 6.
    assert code == (-signal.SIGKILL if processes == 1 else int(ExitCode.RANK_LOST))
    assert (out / "plan.json").exists()
    if processes == 2:
        assert not list(out.glob("tmp-*"))
    before = {path.name: path.stat().st_ino for path in out.glob("p-*.tar")}
    encode(photos, vae, out)
    assert contents(out) == contents(whole)
    after = {path.name: path.stat().st_ino for path in out.glob("p-*.tar")}
    assert before.items() <= after.items()


def begin(photos: Path, vae: Path, out: Path) -> None:
    """Encode, with an error of the disk when the second shard gets its name."""

    class Full(disk.Disk):
        def rename(self, old: Path, new: Path) -> None:
            if new.name == "p-1.tar":
                raise OSError(28, "No space left on device")
            super().rename(old, new)

    with disk.using(Full()), pytest.raises(SaveError, match="No space left") as error:
        encode(photos, vae, out)
    assert error.value.code == ExitCode.CANNOT_SAVE
    assert [path.name for path in sorted(out.glob("*.tar"))] == ["p-0.tar"]
    assert not list(out.glob("tmp-*"))


@pytest.mark.parametrize("finished", [True, False])
def test_other_settings_do_not_go_on_with_a_folder(
    photos: Path, vae: Path, tmp_path: Path, finished: bool
) -> None:
    out = tmp_path / "out"
    (encode if finished else begin)(photos, vae, out)
    before = contents(out)
    other = save_autoencoder(tmp_path / "other", seed=5)
    with pytest.raises(UserError, match="out: holds latents of another VAE; give another folder"):
        encode(photos, other, out)
    for options, line in (
        (dataclasses.replace(SMALL, size=32), "made with size 16, not 32"),
        (dataclasses.replace(SMALL, batch=3), "made with batch 2, not 3"),
        (dataclasses.replace(SMALL, mirrored=False), "made with mirrored True, not False"),
    ):
        with pytest.raises(UserError, match=line):
            encode(photos, vae, out, options=options)
    with pytest.raises(UserError, match="shards of other input or options"):
        encode(photos / "p-0.tar", vae, out)
    assert contents(out) == before


def test_an_unfinished_folder_is_gone_on_with_by_the_same_versions(
    photos: Path, vae: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin(photos, vae, tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr(torch, "__version__", "1.0")
        with pytest.raises(UserError, match=r"out: was begun with .*torch-2.*here are .*torch-1"):
            encode(photos, vae, tmp_path / "out")
        assert encode(photos, vae, whole) == read_manifest(whole)  # finished: nothing is made
    encode(photos, vae, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(whole)


def test_shards_of_other_makers_are_left_alone(photos: Path, vae: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    write_tar(out / "mine.tar", [("a.png", encoded(picture(0)))])
    with pytest.raises(UserError, match=r"holds mine\.tar"):
        encode(photos, vae, out)


def test_latents_that_float16_does_not_hold_are_refused(photos: Path, tmp_path: Path) -> None:
    large = save_autoencoder(tmp_path / "vae")
    change_config(large, scaling_factor=1e7)
    with pytest.raises(UserError, match=r"p-0\.tar: a/k0: its latent holds what is not finite"):
        encode(photos, large, tmp_path / "out")
    float32 = dataclasses.replace(SMALL, dtype="float32")
    assert encode(photos, large, tmp_path / "out", options=float32).count == sum(COUNTS)


def test_what_is_no_picture_alone_is_refused(whole: Path, vae: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a/k0: is no picture alone"):
        encode(whole, vae, tmp_path / "a")
    png = encoded(picture(0))
    pair = write_tar(tmp_path / "pair.tar", [("a.image.png", png), ("a.degraded.png", png)])
    with pytest.raises(UserError, match=r"a: is no picture alone"):
        encode(pair, vae, tmp_path / "b")
    damaged = write_tar(tmp_path / "bad.tar", [("a.png", png), ("b.png", png[:-40])])
    with pytest.raises(UserError, match=r"bad\.tar: b: "):
        encode(damaged, vae, tmp_path / "c")
    assert not list(tmp_path.glob("*/*.tar"))


def test_shards_of_one_name_are_refused(photos: Path, vae: Path, tmp_path: Path) -> None:
    (tmp_path / "p-0.tar").write_bytes((photos / "p-0.tar").read_bytes())
    twice = open_shards([photos / "p-0.tar", tmp_path / "p-0.tar"])
    with pytest.raises(UserError, match=r"p-0\.tar: two shards have this name"):
        encode_shards(twice, vae, tmp_path / "out", options=SMALL, progress=False)


def test_unlabelled_pictures_give_unlabelled_latents(vae: Path, tmp_path: Path) -> None:
    write_tar(tmp_path / "x.tar", [(f"{k}.png", encoded(picture(k))) for k in range(3)])
    manifest = encode(tmp_path / "x.tar", vae, tmp_path / "out")
    assert manifest.fields == ("array",)


@pytest.mark.parametrize(
    ("name", "value"),
    [("size", "16"), ("size", True), ("scaling_factor", None), ("dtype", "int8"), ("vae", 3)],
)
def test_a_damaged_description_is_refused(
    whole: Path, tmp_path: Path, name: str, value: object
) -> None:
    content = json.loads((whole / "manifest.json").read_text())
    content["latents"][name] = value
    (tmp_path / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"manifest\.json: "):
        read_latent_info(tmp_path)
    del content["latents"]
    (tmp_path / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="holds no latents"):
        read_latent_info(tmp_path)
