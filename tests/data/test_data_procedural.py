"""Procedural pictures: the statistics of photographs, and the shards made on first use."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage
from support_fork import fork, wait_all

from lit_restore.data.dead_leaves.canvas import Canvas
from lit_restore.data.dead_leaves.scatter import _radii
from lit_restore.data.locate import open_source
from lit_restore.data.procedural import ensure_procedural, procedural_image
from lit_restore.errors import UserError

SIZE = 160


@cache
def pictures() -> list[np.ndarray]:
    return [procedural_image(0, index, size=(SIZE, SIZE)) for index in range(16)]


def slope(images: list[np.ndarray]) -> float:
    """Of the radially averaged power spectrum between 0.02 and 0.4 cycles a pixel, log–log."""
    window = np.outer(np.hanning(SIZE), np.hanning(SIZE))
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(SIZE), np.fft.fftfreq(SIZE)))
    edges = np.geomspace(0.02, 0.4, 12)
    bins = np.digitize(frequency.ravel(), edges)
    total = np.zeros(len(edges) - 1)
    for image in images:
        grey = image.mean(2)
        power = np.abs(np.fft.fft2((grey - grey.mean()) * window)).ravel() ** 2
        spectrum = np.array([power[bins == k].mean() for k in range(1, len(edges))])
        total += spectrum / spectrum.sum()
    centres = np.sqrt(edges[1:] * edges[:-1])
    return float(np.polyfit(np.log(centres), np.log(total), 1)[0])


def kurtosis(image: np.ndarray) -> float:
    step = np.diff(image.mean(2), axis=1).ravel()
    step -= step.mean()
    return float((step**4).mean() / (step**2).mean() ** 2)


def correlation(image: np.ndarray) -> float:
    return float(np.corrcoef(image.reshape(-1, 3).T)[np.triu_indices(3, 1)].mean())


def test_power_falls_as_one_over_frequency_squared() -> None:
    assert -2.6 < slope(pictures()) < -1.6


def test_the_spectrum_test_refuses_white_noise_and_blurred_pictures() -> None:
    rng = np.random.default_rng(0)
    white = [rng.integers(0, 256, (SIZE, SIZE, 3)) for _ in range(4)]
    assert slope(white) > -1.6
    assert slope([ndimage.gaussian_filter(p.astype(float), (1, 1, 0)) for p in pictures()]) < -2.6


def test_channels_are_correlated_as_in_photographs() -> None:
    assert np.mean([correlation(image) for image in pictures()]) > 0.8


def test_gradients_have_heavy_tails() -> None:
    assert np.median([kurtosis(image) for image in pictures()]) > 6
    noise = np.random.default_rng(0).normal(size=(SIZE, SIZE, 3))
    assert kurtosis(noise) < 4  # a Gaussian field does not


def test_pictures_differ_in_contrast_and_detail() -> None:
    contrast = [image.std() for image in pictures()]
    detail = [np.median(np.abs(np.diff(image.mean(2), axis=0))) for image in pictures()]
    assert max(contrast) > 1.5 * min(contrast)
    assert max(detail) > 4 * max(0.5, min(detail))


@pytest.mark.parametrize("size", [(16, 16), (48, 80), (81, 50)])
def test_a_picture_is_a_function_of_seed_and_index(size: tuple[int, int]) -> None:
    first = procedural_image(3, 7, size=size)
    assert first.shape == (*size, 3)
    assert first.dtype == np.uint8
    np.testing.assert_array_equal(first, procedural_image(3, 7, size=size))
    assert (first != procedural_image(3, 8, size=size)).any()
    assert (first != procedural_image(4, 7, size=size)).any()


def test_radii_follow_the_inverse_cube_between_their_bounds() -> None:
    rng = np.random.default_rng(0)
    radii = np.concatenate([_radii(rng, 10**6, 2.0, 100.0) for _ in range(20)])
    assert radii.min() >= 2
    assert radii.max() <= 100
    # P(r > x) = (x^-2 - 100^-2) / (2^-2 - 100^-2)
    for x in (3.0, 5.0, 10.0):
        expected = (x**-2 - 1e-4) / (0.25 - 1e-4)
        assert np.mean(radii > x) == pytest.approx(expected, rel=0.1)


def test_the_leaf_in_front_hides_the_others() -> None:
    canvas = Canvas(40, 40)
    centres = np.array([[20, 20], [20, 24], [20, 20]], np.float32)
    labels = canvas.new(centres, [6, 6, 3])
    canvas.stamp(centres, np.array([6, 6, 3], np.float32), labels)
    assert canvas.labels[20, 20] == labels[2]
    assert canvas.labels[20, 29] == labels[1]
    assert canvas.labels[20, 15] == labels[0]
    assert canvas.labels[2, 2] == 0


def test_first_use_makes_the_set_once(tmp_path: Path) -> None:
    folder = ensure_procedural(tmp_path / "set", count=5, size=32, seed=1, per_shard=2)
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert set(before) == {"manifest.json", *(f"train-{k:06d}.tar" for k in range(3))}
    ensure_procedural(folder, count=5, size=32, seed=1, per_shard=2)
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    source = open_source(str(folder), key="data.train")
    error = source.read(3).image.astype(int) - procedural_image(1, 3, size=(32, 32))
    assert np.abs(error).mean() < 4  # JPEG of quality 95


def test_first_use_refuses_a_folder_of_other_pictures(tmp_path: Path) -> None:
    ensure_procedural(tmp_path / "set", count=2, size=32, seed=1)
    with pytest.raises(UserError, match="other input or options"):
        ensure_procedural(tmp_path / "set", count=2, size=32, seed=2)


def test_two_processes_that_ask_at_once_make_one_set(tmp_path: Path) -> None:
    def make() -> int:
        ensure_procedural(tmp_path / "both", count=24, size=48, seed=0, per_shard=4)
        return 0

    pids = [fork(make, env={}, output=tmp_path / f"log{k}") for k in range(3)]
    logs = [tmp_path / f"log{k}" for k in range(3)]
    assert wait_all(pids, 60) == [0, 0, 0], [log.read_text() for log in logs]
    alone = ensure_procedural(tmp_path / "alone", count=24, size=48, seed=0, per_shard=4)
    names = sorted(os.listdir(alone))
    assert sorted(os.listdir(tmp_path / "both")) == names
    assert all((alone / n).read_bytes() == (tmp_path / "both" / n).read_bytes() for n in names)


@pytest.mark.parametrize(("count", "size", "where"), [(0, 64, "count"), (3, 8, "size")])
def test_sizes_out_of_range_are_refused(tmp_path: Path, count: int, size: int, where: str) -> None:
    with pytest.raises(UserError, match=where):
        ensure_procedural(tmp_path / "set", count=count, size=size, seed=0)
    assert not (tmp_path / "set").exists()
