"""When the data module degrades: what is cut for it, what is left alone, what resuming checks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from lit_restore.callbacks.fingerprints import first_difference
from lit_restore.data.batch import Batch
from lit_restore.data.degradations import (
    Chain,
    Degradation,
    Downscale,
    GaussianBlur,
    GaussianNoise,
    describe,
)
from lit_restore.data.module import ShardDataModule
from lit_restore.errors import UserError


def module_of(degradation: Degradation | None, state: str = "validating") -> ShardDataModule:
    """A data module inside a trainer that is `training`, `validating` or `predicting`."""
    data = ShardDataModule(degradation=degradation)
    trainer: Any = SimpleNamespace(
        precision="32-true", training=state == "training", predicting=state == "predicting"
    )
    data.trainer = trainer
    return data


def batch_of(height: int = 29, width: int = 33, **pictures: Tensor) -> Batch:
    """A random picture as it comes from the loader."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (1, 3, height, width), generator=generator, dtype=torch.uint8)
    return Batch(image=image, key=["a"], position=torch.tensor([5]), **pictures)  # type: ignore[typeddict-item]


@pytest.mark.parametrize(
    ("degradation", "kept", "small"),
    [
        (Downscale(4), (28, 32), (7, 8)),
        (Chain([GaussianBlur(), Downscale(2), Downscale(3)]), (24, 30), (4, 5)),
        (Downscale(4, restore_size=True), (29, 33), (29, 33)),
        (GaussianNoise(), (29, 33), (29, 33)),
    ],
    ids=["Downscale", "Chain", "restored", "noise"],
)
def test_validation_pictures_are_cut_to_what_the_degradation_takes(
    degradation: Degradation, kept: tuple[int, int], small: tuple[int, int]
) -> None:
    before = batch_of()["image"]
    ready = module_of(degradation).on_after_batch_transfer(batch_of(restored=before.clone()), 0)
    wanted = before[..., : kept[0], : kept[1]] / 255
    assert torch.equal(ready["image"], wanted)
    assert torch.equal(ready["restored"], wanted)
    assert ready["degraded"].shape[-2:] == small


def test_a_crop_of_the_training_that_does_not_fit_is_told() -> None:
    with pytest.raises(UserError, match=r"^data\.crop: 33x29 does not divide by the scale 4"):
        module_of(Downscale(4), "training").on_after_batch_transfer(batch_of(), 0)


def test_pairs_are_neither_degraded_again_nor_cut() -> None:
    given = batch_of(14, 16)["image"]
    ready = module_of(Downscale(4)).on_after_batch_transfer(batch_of(degraded=given), 0)
    assert torch.equal(ready["degraded"], given / 255)
    assert ready["image"].shape == (1, 3, 29, 33)


def test_pictures_to_predict_from_are_taken_as_they_are() -> None:
    ready = module_of(Downscale(4), "predicting").on_after_batch_transfer(batch_of(), 0)
    assert "degraded" not in ready
    assert torch.equal(ready["image"], batch_of()["image"] / 255)


def test_what_is_drawn_is_of_the_position_in_training_and_of_the_key_elsewhere() -> None:
    def drawn(state: str, **changes: object) -> Tensor:
        data = module_of(GaussianNoise(), state)
        batch: Any = {**batch_of(16, 16), **changes}
        return data.on_after_batch_transfer(batch, 0)["degraded"]

    position, key = {"position": torch.tensor([6])}, {"key": ["b"]}
    assert torch.equal(drawn("validating"), drawn("validating", **position))
    assert not torch.equal(drawn("validating"), drawn("validating", **key))
    assert torch.equal(drawn("training"), drawn("training", **key))
    assert not torch.equal(drawn("training"), drawn("training", **position))


def test_the_fingerprint_of_a_run_holds_its_degradation(make_shards: Callable[..., Path]) -> None:
    folder = make_shards([2])

    def fingerprint(degradation: Degradation | None) -> dict[str, object]:
        data = ShardDataModule(
            train=str(folder), val=None, crop=8, workers=0, global_batch=2, total_samples=2,
            degradation=degradation,
        )  # fmt: skip
        data.setup("fit")
        return data.fingerprint()

    blurred = fingerprint(Chain([GaussianBlur(), Downscale(2)]))
    recorded = blurred["data"]
    assert isinstance(recorded, dict)
    assert recorded["degradation"] == describe(Chain([GaussianBlur(), Downscale(2)]))
    assert first_difference(blurred, fingerprint(Chain([GaussianBlur(), Downscale(2)])), "") is None
    told = first_difference(blurred, fingerprint(Chain([GaussianBlur(), Downscale(4)])), "run")
    assert told == "run.data.degradation.options.steps[1].options.scale is 4, the checkpoint's 2"
    plain = fingerprint(None)["data"]
    assert isinstance(plain, dict)
    assert "degradation" not in plain  # as in checkpoints from before there were any
