"""Restored pictures beside clean ones: the network's own output, whatever happens meanwhile."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import encoded, picture, write_tar
from support_fork import fork, wait_all
from support_packing import contents
from support_restoration import digest, save_restorer

from lit_restore.data.batch import Refusal
from lit_restore.data.degradations import Downscale, GaussianNoise, describe
from lit_restore.data.inspection import verify
from lit_restore.data.locate import open_source
from lit_restore.data.manifest import Manifest, read_manifest
from lit_restore.data.module import ShardDataModule
from lit_restore.data.restored_shards import restore_shards
from lit_restore.errors import RankLost, SaveError, UserError
from lit_restore.io import disk, failpoints
from lit_restore.io.quantise import from_pixels, to_uint8
from lit_restore.networks import EDSR
from lit_restore.seeding import torch_generator
from lit_restore.weights import load_restorer, save_exported

COUNTS = (3, 2, 2)
HALVED = describe(Downscale(2))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three labelled shards of pictures of several sizes, odd ones too."""
    folder = tmp_path_factory.mktemp("photos")
    number = 0
    for shard, count in enumerate(COUNTS):
        members = []
        for _ in range(count):
            members.append((f"a/k{number}.png", encoded(picture(number, 20 + number, 25))))
            members.append((f"a/k{number}.cls", str(number % 3).encode()))
            number += 1
        write_tar(folder / f"p-{shard}.tar", members)
    return folder


@pytest.fixture(scope="module")
def restorer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_restorer(tmp_path_factory.mktemp("net") / "restorer.safetensors")


def restore(
    photos: Path, restorer: Path, out: Path, *, processes: int = 1, **options: Any
) -> Manifest:
    source = open_source(str(photos), key="SHARDS")
    options = {"degradation": HALVED, **options}
    devices = ["cpu"] * processes
    return restore_shards(source, str(restorer), out, devices=devices, progress=False, **options)


@pytest.fixture(scope="module")
def whole(photos: Path, restorer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What an uninterrupted run makes; not to be written to."""
    out = tmp_path_factory.mktemp("whole") / "out"
    restore(photos, restorer, out)
    return out


def test_samples_hold_the_cut_picture_its_degraded_one_and_the_network_s_output(
    photos: Path, restorer: Path, whole: Path
) -> None:
    before, after = (open_source(str(folder), key="SHARDS") for folder in (photos, whole))
    net = load_restorer(restorer).net
    assert [after.key(k) for k in range(7)] == [before.key(k) for k in range(7)]
    for k in range(7):
        old, new = before.read(k), after.read(k)
        height, width = old.image.shape[0] // 2 * 2, 24
        assert np.array_equal(new.image, old.image[:height, :width])
        small = Downscale(2)(from_pixels(new.image)[0], torch.Generator())
        assert new.degraded is not None
        assert new.restored is not None
        assert np.array_equal(new.degraded, to_uint8(small[None])[0])
        assert np.array_equal(new.restored, to_uint8(net(from_pixels(new.degraded)))[0])
        assert new.label == old.label


def test_the_manifest_says_what_was_restored_by_what(whole: Path, restorer: Path) -> None:
    manifest = read_manifest(whole)
    assert manifest.fields == ("degraded", "image", "label", "restored")
    assert [shard.count for shard in manifest.shards] == list(COUNTS)
    assert json.loads((whole / "manifest.json").read_text())["restored"] == {
        "restorer": digest(restorer), "scale": 2, "degradation": HALVED, "seed": 0,
    }  # fmt: skip
    assert verify(whole, decode=True) == (sum(COUNTS), [])
    assert sorted(p.name for p in whole.iterdir() if p.is_file()) == [
        "manifest.json", "p-0.tar", "p-1.tar", "p-2.tar",
    ]  # fmt: skip


def test_training_reads_them_aligned(whole: Path) -> None:
    data = ShardDataModule(
        train=str(whole), val=None, crop=8, global_batch=4, workers=0, total_samples=16
    )
    data.setup("fit")
    for batch in data.train_dataloader():
        assert not isinstance(batch, Refusal)
        ready = data.on_after_batch_transfer(batch, 0)
        assert ready["image"].shape == ready["restored"].shape == (4, 3, 8, 8)
        assert ready["degraded"].shape == (4, 3, 4, 4)
        # The network is close to bicubic: what it makes of a crop looks like the crop.
        errors = [
            float((ready["restored"] - image).square().mean())
            for image in (ready["image"], ready["image"].flip(-1), ready["image"].roll(1, 0))
        ]
        assert errors[0] < 0.01
        assert errors[0] < 0.3 * min(errors[1:])


# Determinism --------------------------------------------------------------------------------------


def test_two_processes_make_what_one_makes(
    photos: Path, restorer: Path, whole: Path, tmp_path: Path
) -> None:
    restore(photos, restorer, tmp_path / "out", processes=2)
    assert contents(tmp_path / "out") == contents(whole)


@pytest.mark.parametrize("processes", [1, 2])
def test_killed_inside_a_shard_it_goes_on_to_the_same_bytes(
    photos: Path, restorer: Path, whole: Path, tmp_path: Path, processes: int
) -> None:
    out = tmp_path / "out"

    def make() -> int:
        with failpoints.armed("data.decode=kill@4"):
            try:
                restore(photos, restorer, out, processes=processes)
            except RankLost as error:
                return int(error.code)
        return 0

    code = wait_all([fork(make, env={}, output=tmp_path / "log")], 60)[0]
    assert code == (-signal.SIGKILL if processes == 1 else int(RankLost("").code))
    assert (out / "plan.json").exists()
    restore(photos, restorer, out)
    assert contents(out) == contents(whole)


def test_a_full_disk_is_told_and_finished_shards_are_kept(
    photos: Path, restorer: Path, whole: Path, tmp_path: Path
) -> None:
    class Full(disk.Disk):
        def rename(self, old: Path, new: Path) -> None:
            if new.name == "p-1.tar":
                raise OSError(28, "No space left on device")
            super().rename(old, new)

    out = tmp_path / "out"
    with disk.using(Full()), pytest.raises(SaveError, match="No space left"):
        restore(photos, restorer, out)
    kept = (out / "p-0.tar").stat().st_ino
    restore(photos, restorer, out)
    assert (out / "p-0.tar").stat().st_ino == kept
    assert contents(out) == contents(whole)


def test_what_is_drawn_depends_on_the_seed_and_the_key(
    photos: Path, restorer: Path, tmp_path: Path
) -> None:
    one = save_restorer(tmp_path / "one.safetensors", scale=1)
    noisy = describe(GaussianNoise(0.1, 0.1))
    for name, seed in (("a", 0), ("b", 1)):
        restore(photos, one, tmp_path / name, degradation=noisy, seed=seed)
    first, second = (open_source(str(tmp_path / n), key="SHARDS").read(4) for n in "ab")
    assert first.degraded is not None
    assert not np.array_equal(first.degraded, second.degraded)
    draw = torch_generator(0, "a/k4", "degradation")
    wanted = GaussianNoise(0.1, 0.1)(from_pixels(first.image)[0], draw)
    assert np.array_equal(first.degraded, to_uint8(wanted[None])[0])
    assert first.image.shape == (24, 25, 3)  # scale 1: nothing is cut off


# Pairs and mistakes -------------------------------------------------------------------------------


def write_pair(path: Path, height: int, width: int, degraded: tuple[int, int]) -> Path:
    """One pair of given sizes, without a label."""
    return write_tar(path, [
        ("a.image.png", encoded(picture(0, height, width))),
        ("a.degraded.png", encoded(picture(1, *degraded))),
    ])  # fmt: skip


def test_pairs_keep_their_own_degraded_picture(restorer: Path, tmp_path: Path) -> None:
    pair = write_pair(tmp_path / "pair.tar", 21, 30, (10, 15))
    manifest = restore(pair, restorer, tmp_path / "out", degradation=None)
    assert manifest.fields == ("degraded", "image", "restored")
    sample = open_source(str(tmp_path / "out"), key="SHARDS").read(0)
    assert sample.degraded is not None
    assert np.array_equal(sample.degraded, picture(1, 10, 15))
    assert np.array_equal(sample.image, picture(0, 21, 30)[:20])
    net = load_restorer(restorer).net
    wanted = to_uint8(net(from_pixels(sample.degraded)))[0]
    assert sample.restored is not None
    assert np.array_equal(sample.restored, wanted)


def test_what_does_not_fit_is_refused_by_the_sample_s_name(
    photos: Path, restorer: Path, tmp_path: Path
) -> None:
    def refused(source: Path, line: str, **options: Any) -> None:
        with pytest.raises(UserError, match=line):
            restore(source, restorer, tmp_path / "out", **options)
        assert not list(tmp_path.glob("out/*.tar"))

    good = write_pair(tmp_path / "good.tar", 20, 30, (10, 15))
    refused(good, r"good\.tar: a: holds its degraded picture; leave --degradation out")
    refused(photos, r"p-0\.tar: a/k0: holds no degraded picture; give --degr", degradation=None)
    other = write_pair(tmp_path / "other.tar", 20, 28, (5, 7))
    refused(other, r"other\.tar: a: is 7x5 for 28x20, the network enlarges by 2", degradation=None)
    unknown = {"name": "Rain", "options": {}}
    refused(photos, r"Rain is not one of GaussianNoise, ", degradation=unknown)
    arrays = tmp_path / "arrays.tar"
    np.save(tmp_path / "a.npy", np.zeros(3, np.float32))
    write_tar(arrays, [("a.npy", (tmp_path / "a.npy").read_bytes())])
    refused(arrays, r"arrays\.tar: a: holds no picture")


def test_an_output_that_is_no_number_is_refused(photos: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = EDSR(width=4, depth=1, scale=2)
    for parameter in net.parameters():
        parameter.data.fill_(1e30)
    save_exported(tmp_path / "huge.safetensors", net, info={"task": "regression"})
    with pytest.raises(UserError, match="the network's output is not finite"):
        restore(photos, tmp_path / "huge.safetensors", tmp_path / "out")
    assert not list(tmp_path.glob("out/*.tar"))


def test_other_settings_do_not_go_on_with_a_folder(
    photos: Path, restorer: Path, whole: Path, tmp_path: Path
) -> None:
    before = contents(whole)
    other = save_restorer(tmp_path / "other.safetensors", seed=1)
    for network, options in (
        (other, {}),
        (restorer, {"seed": 1}),
        (restorer, {"degradation": describe(Downscale(2, restore_size=True))}),
    ):
        with pytest.raises(UserError, match="out: holds shards of other input or options"):
            restore(photos, network, whole, **options)
    assert restore(photos, restorer, whole) == read_manifest(whole)
    assert contents(whole) == before
