"""`shards restore` with a burst network: truth and estimate in sRGB, whatever happens meanwhile."""

from __future__ import annotations

import json
import signal
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import encoded, picture, write_tar
from support_fork import fork, wait_all
from support_packing import contents
from support_restoration import digest, moved, save_restorer

from lit_restore.cli.main import main
from lit_restore.data.batch import Refusal
from lit_restore.data.burst_shards import is_burst_network, restore_bursts
from lit_restore.data.bursts import BurstOptions, process, synthesize_burst
from lit_restore.data.inspection import verify
from lit_restore.data.locate import open_source
from lit_restore.data.manifest import Manifest, read_manifest
from lit_restore.data.module import ShardDataModule
from lit_restore.errors import UserError
from lit_restore.io import failpoints
from lit_restore.io.quantise import from_pixels, to_uint8
from lit_restore.networks.bsrt import BSRT
from lit_restore.seeding import torch_generator
from lit_restore.weights import load_exported, save_exported

COUNTS = (2, 2, 1)
SMALL: dict[str, Any] = {
    "frames": 3, "width": 8, "embed": 12, "entry_depth": 1, "depths": (1,), "heads": 2, "groups": 2,
    "drop_path": 0.0,
}  # fmt: skip


def save_network(path: Path, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    save_exported(path, moved(BSRT(**SMALL), seed), info={"task": "burst"})
    return path


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three labelled shards of pictures of several sizes, 56 pixels the least."""
    folder = tmp_path_factory.mktemp("photos")
    number = 0
    for shard, count in enumerate(COUNTS):
        members = []
        for _ in range(count):
            members.append((f"a/k{number}.png", encoded(picture(number, 56 + 5 * number, 67))))
            members.append((f"a/k{number}.cls", str(number % 3).encode()))
            number += 1
        write_tar(folder / f"p-{shard}.tar", members)
    return folder


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_network(tmp_path_factory.mktemp("net") / "burst.safetensors")


def restore(
    photos: Path, network: Path, out: Path, *, processes: int = 1, seed: int = 0
) -> Manifest:
    source = open_source(str(photos), key="SHARDS")
    devices = ["cpu"] * processes
    return restore_bursts(source, str(network), out, devices=devices, seed=seed, progress=False)


def command(photos: Path, network: Path, out: Path, *words: str) -> int:
    given = ("--restorer", str(network), "--out", str(out), "--device", "cpu", "--workers", "1")
    return main(["shards", "restore", str(photos), *given, *words])


@pytest.fixture(scope="module")
def whole(photos: Path, network: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the command makes; not to be written to."""
    out = tmp_path_factory.mktemp("whole") / "out"
    assert command(photos, network, out) == 0
    return out


# What is made -------------------------------------------------------------------------------------


def test_samples_hold_the_processed_target_and_estimate(
    photos: Path, network: Path, whole: Path
) -> None:
    before, after = (open_source(str(folder), key="SHARDS") for folder in (photos, whole))
    net = load_exported(network)
    assert [after.key(k) for k in range(5)] == [before.key(k) for k in range(5)]
    for k in range(5):
        old, new = before.read(k), after.read(k)
        draw = torch_generator(0, f"a/k{k}", "burst")
        burst, target, drawn = synthesize_burst(from_pixels(old.image)[0], 3, draw)
        with torch.no_grad():
            estimate = net(burst[None])[0]
        assert new.restored is not None
        assert np.array_equal(new.image, to_uint8(process(target, drawn)[None])[0])
        assert np.array_equal(new.restored, to_uint8(process(estimate, drawn)[None])[0])
        height = (old.image.shape[0] - 48) // 8 * 8
        assert new.image.shape == new.restored.shape == (height, 16, 3)
        # The truth is the picture inside its border, but where the camera clipped it.
        inner = old.image[24 : 24 + height, 24:40].astype(int)
        assert np.median(np.abs(new.image - inner)) <= 2
        assert new.degraded is None
        assert new.label == old.label


def test_the_manifest_says_what_was_made_by_what(network: Path, whole: Path) -> None:
    manifest = read_manifest(whole)
    assert manifest.fields == ("image", "label", "restored")
    assert [shard.count for shard in manifest.shards] == list(COUNTS)
    assert json.loads((whole / "manifest.json").read_text())["restored"] == {
        "restorer": digest(network),
        "scale": 8,
        "degradation": {"name": "burst", "options": asdict(BurstOptions())},
        "seed": 0,
    }
    assert verify(whole, decode=True) == (5, [])
    assert sum(path.is_file() for path in whole.iterdir()) == 4


def test_training_reads_both_pictures(whole: Path) -> None:
    data = ShardDataModule(
        train=str(whole), val=None, crop=8, global_batch=4, workers=0, total_samples=8
    )
    data.setup("fit")
    for batch in data.train_dataloader():
        assert not isinstance(batch, Refusal)
        ready = data.on_after_batch_transfer(batch, 0)
        assert ready["image"].shape == ready["restored"].shape == (4, 3, 8, 8)


# Determinism --------------------------------------------------------------------------------------


def test_two_processes_make_what_one_makes(
    photos: Path, network: Path, whole: Path, tmp_path: Path
) -> None:
    restore(photos, network, tmp_path / "out", processes=2)
    assert contents(tmp_path / "out") == contents(whole)


def test_killed_inside_a_shard_it_goes_on_to_the_same_bytes(
    photos: Path, network: Path, whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"

    def make() -> int:
        with failpoints.armed("data.decode=kill@4"):
            restore(photos, network, out)
        return 0

    assert wait_all([fork(make, env={}, output=tmp_path / "log")], 60) == [-signal.SIGKILL]
    assert (out / "plan.json").exists()
    assert command(photos, network, out) == 0
    assert contents(out) == contents(whole)


def test_other_seeds_and_networks_do_not_go_on_with_a_folder(
    photos: Path, network: Path, whole: Path, tmp_path: Path
) -> None:
    before = contents(whole)
    other = save_network(tmp_path / "other.safetensors", seed=1)
    for path, seed in ((other, 0), (network, 1)):
        with pytest.raises(UserError, match="out: holds shards of other input or options"):
            restore(photos, path, whole, seed=seed)
    assert restore(photos, network, whole) == read_manifest(whole)
    assert contents(whole) == before


def test_another_seed_draws_other_bursts(photos: Path, network: Path, tmp_path: Path) -> None:
    shard = photos / "p-2.tar"
    first, second = (tmp_path / name for name in "ab")
    assert command(shard, network, first) == 0
    assert command(shard, network, second, "--seed", "1") == 0
    one, other = (open_source(str(out), key="SHARDS").read(0) for out in (first, second))
    assert one.restored is not None
    assert other.restored is not None
    assert (one.restored != other.restored).any()


# Mistakes -----------------------------------------------------------------------------------------


def refused(capsys: pytest.CaptureFixture[str], *words: Any) -> str:
    capsys.readouterr()
    assert command(*words) == 2
    errors = [k for k in capsys.readouterr().err.splitlines() if k.startswith("error: ")]
    assert len(errors) == 1
    return errors[0].removeprefix("error: ")


def test_what_makes_no_burst_is_refused_by_the_sample_s_name(
    network: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = write_tar(tmp_path / "small.tar", [
        ("a.png", encoded(picture(0, 60, 60))), ("b.png", encoded(picture(0, 60, 55))),
    ])  # fmt: skip
    found = refused(capsys, small, network, tmp_path / "out")
    told = "makes no burst; RGB pictures of at least 56 pixels a side do"
    assert found == f"{small}: b: (3, 60, 55) {told}"
    assert not list(tmp_path.glob("out/*.tar"))
    pair = write_tar(tmp_path / "pair.tar", [
        ("a.image.png", encoded(picture(0, 60, 60))),
        ("a.degraded.png", encoded(picture(0, 30, 30))),
    ])  # fmt: skip
    found = refused(capsys, pair, network, tmp_path / "pairs")
    assert found == f"{pair}: a: is no picture alone; only such become bursts"


def test_bursts_take_no_degradation(
    photos: Path, network: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--degradation", "{class_path: Haze}")
    found = refused(capsys, photos, network, tmp_path / "out", *words)
    assert found == "--degradation: bursts are made in one way; leave it out"
    assert not (tmp_path / "out").exists()


def test_burst_networks_are_told_from_others(network: Path, tmp_path: Path) -> None:
    assert is_burst_network(str(network))
    assert not is_burst_network(str(save_restorer(tmp_path / "restorer.safetensors")))
    (tmp_path / "foreign.pth").write_bytes(b"others'")
    assert not is_burst_network(str(tmp_path / "foreign.pth"))
