"""Augmentation: what is drawn for a sample depends on (seed, position) alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from conftest import encoded, picture, write_tar

from lit_restore.data.batch import Refusal, Sample, collate
from lit_restore.data.locate import open_source
from lit_restore.data.order import Order
from lit_restore.data.reader import open_shards
from lit_restore.data.samples import (
    Augmentation,
    OrderedSamples,
    TrainingSamples,
)

ALL = Augmentation(crop=16, flip=True, rotate=True)


def samples_of(folder: Path, *, seed: int = 0, augmentation: Augmentation = ALL) -> TrainingSamples:
    source = open_source(str(folder), key="data.train")
    order = Order(source.counts, seed=seed, window=2)
    return TrainingSamples(source, order, augmentation=augmentation, seed=seed)


def read(samples: TrainingSamples | OrderedSamples, position: int) -> Sample:
    sample = samples[position]
    assert isinstance(sample, Sample)
    return sample


def test_a_sample_is_a_function_of_seed_and_position(make_shards: Callable[..., Path]) -> None:
    folder = make_shards([3, 4])
    forwards, other = samples_of(folder), samples_of(folder, seed=1)
    images = [read(forwards, k).image for k in range(12)]
    again = samples_of(folder)
    for k in reversed(range(12)):
        np.testing.assert_array_equal(read(again, k).image, images[k])
    assert any((read(other, k).image != images[k]).any() for k in range(12))


def test_the_eight_turns_are_all_drawn_equally_often(make_shards: Callable[..., Path]) -> None:
    samples = samples_of(make_shards([1]), augmentation=replace(ALL, crop=40))
    square = Augmentation(crop=None, flip=True, rotate=True)
    whole = TrainingSamples(samples.source, samples.order, augmentation=square, seed=0)
    counts: dict[bytes, int] = {}
    for k in range(400):
        key = read(whole, k).image.tobytes()
        counts[key] = counts.get(key, 0) + 1
    assert len(counts) == 8
    assert min(counts.values()) > 25  # 50 expected


def test_an_impossible_crop_is_refused_in_words(make_shards: Callable[..., Path]) -> None:
    samples = samples_of(make_shards([2]), augmentation=replace(ALL, crop=64))
    refusal = samples[0]
    assert isinstance(refusal, Refusal)
    assert "48x40 is smaller than the 64 crop" in refusal.message
    assert refusal.where is not None
    assert refusal.where.endswith((": 00000", ": 00001"))
    assert collate([refusal]) is refusal


def test_a_corrupt_member_is_replaced_by_the_next_position_and_named(tmp_path: Path) -> None:
    members = [(f"{k}.png", encoded(picture(k))) for k in range(6)]
    members[2] = ("2.png", encoded(picture(2))[:200])
    source = open_shards([write_tar(tmp_path / "s.tar", members)])
    order = Order(source.counts, seed=0, window=1)
    samples = TrainingSamples(source, order, augmentation=ALL, seed=0)
    position = next(k for k in range(6) if order.index(k) == 2)
    sample = read(samples, position)
    assert sample.position == position
    assert sample.key == source.key(order.index(position + 1))
    assert [name for name, _ in sample.bad] == [source.where(2)]
    batch = collate([sample])
    assert not isinstance(batch, Refusal)
    assert batch["bad"] == list(sample.bad)


def test_validation_padding_has_weight_zero(make_shards: Callable[..., Path]) -> None:
    samples = OrderedSamples(open_source(str(make_shards([3])), key="data.val"), crop=24)
    assert [read(samples, k).weight for k in range(5)] == [1, 1, 1, 0, 0]
    assert read(samples, 0).image.shape == (24, 24, 3)
