"""The flow-matching loss, its validation and its pictures are functions of (seed, position)."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest
import torch
from support_generation import DIMSUM, DIT, flat

from lit_restore.callbacks.samples import tile
from lit_restore.data.batch import Batch
from lit_restore.data.latents import draw_latent
from lit_restore.diffusion import Guidance, SamplerOptions
from lit_restore.networks import DiMSUM, DiT, Network
from lit_restore.training.drawing import decoder_of
from lit_restore.training.generation import FlowGeneration
from lit_restore.training.scoring import ScoreOptions


def module_of(net: dict[str, Any] | None = None, **options: Any) -> FlowGeneration:
    """In float64, with weights moved off zero and ready to draw."""
    torch.manual_seed(0)
    module = FlowGeneration(DiT(**{**DIT, **(net or {})}), **options).double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    module._decoder = decoder_of(module.shape[0], None)
    return module


def batch_of(*positions: int) -> Batch:
    images = np.stack([flat(p) for p in positions]).transpose(0, 3, 1, 2) / 255
    return Batch(
        image=torch.from_numpy(images), label=torch.tensor([p % 2 for p in positions]),
        key=[f"shard/{p}" for p in positions], position=torch.tensor(positions),
        weight=torch.ones(len(positions)),
    )  # fmt: skip


def loss_of(module: FlowGeneration, *positions: int) -> float:
    return float(module.losses(batch_of(*positions))["loss"].detach())


def test_the_loss_is_the_error_of_the_velocity_on_the_path_between_noise_and_data() -> None:
    module = module_of({"classes": 0}, interpolant="linear")
    x1, x0 = torch.randn(2, 3, 3, 8, 8, dtype=torch.float64).unbind()
    t = torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64)
    path = t.view(-1, 1, 1, 1) * x1 + (1 - t).view(-1, 1, 1, 1) * x0
    error = module.net(path, t) - (x1 - x0)
    expected = error.square().mean(dim=(1, 2, 3))
    torch.testing.assert_close(module.loss_at(module.net, x1, x0, t, None), expected)


def test_the_loss_of_a_batch_is_the_mean_of_its_parts_in_any_order() -> None:
    module = module_of(label_dropout=0.5, seed=3)
    whole = loss_of(module, 0, 1, 2, 3)
    assert (loss_of(module, 3, 0) + loss_of(module, 2, 1)) / 2 == pytest.approx(whole, rel=1e-12)
    assert loss_of(module, 4, 5, 6, 7) != pytest.approx(whole, rel=1e-3)
    module.seed = 4
    assert loss_of(module, 0, 1, 2, 3) != pytest.approx(whole, rel=1e-3)


def test_a_share_of_the_labels_is_dropped_and_each_by_its_own_position() -> None:
    module = module_of(label_dropout=0.3)
    positions = list(range(2000))
    batch = cast(Batch, {"label": torch.tensor([p % 2 for p in positions])})
    labels = module.labels_of(batch, positions)
    assert labels is not None
    dropped = labels == 2
    assert torch.equal(labels[~dropped], batch["label"][~dropped])
    assert float(dropped.double().mean()) == pytest.approx(0.3, abs=0.04)
    again = module.labels_of(cast(Batch, {"label": batch["label"][500:]}), positions[500:])
    assert again is not None
    assert torch.equal(again, labels[500:])
    module.label_dropout = 0.0
    assert torch.equal(cast(torch.Tensor, module.labels_of(batch, positions)), batch["label"])


def test_latents_are_drawn_anew_at_each_position_and_for_validation_by_key() -> None:
    module = module_of({"channels": 4, "size": [4, 6], "patch": 2}, seed=5)
    stored = torch.rand(3, 2, 2, 4, 4, 6).half()
    batch = cast(Batch, {**batch_of(4, 5, 6), "latent": stored})
    drawn = module.data_of(batch, 5, [4, 5, 6])
    assert torch.equal(drawn, draw_latent(stored, 5, [4, 5, 6]).double())
    assert module.losses(batch)["loss"].isfinite()
    module._score.start(1)
    validated = module.score(module.net, batch)
    module.seed = 6
    assert module.score(module.net, batch) == validated
    pictures = module.shown(drawn)
    assert pictures.shape == (3, 3, 4, 6)
    assert 0 <= pictures.min() < pictures.max() <= 1


def test_validation_is_the_same_for_any_seed_position_and_batch() -> None:
    module = module_of(seed=1)
    module._score.start(1)
    batch = batch_of(0, 1, 2)
    rows = module.score(module.net, batch)
    assert rows[0].keys() == {"minus_loss"}
    assert all(row["minus_loss"] < 0 for row in rows)
    module.seed = 2
    moved = cast(Batch, {**batch, "position": batch["position"] + 7})
    assert module.score(module.net, moved) == rows
    alone = module.score(module.net, batch_of(2))[0]["minus_loss"]
    assert alone == pytest.approx(rows[2]["minus_loss"], rel=1e-12)


@pytest.mark.parametrize(
    "sampler",
    [SamplerOptions(solver="heun", nfe=6), SamplerOptions(solver="sde_euler", steps=4),
     SamplerOptions(solver="dopri5")],
    ids=lambda options: options.solver,
)  # fmt: skip
def test_a_picture_depends_on_its_name_and_label_alone(sampler: SamplerOptions) -> None:
    module = module_of(sampler=sampler, guidance=Guidance(scale=2.0), sample_batch=2).train()
    labels = torch.tensor([0, 1, 0])
    made = module.made(module.net, [7, 8, 9], labels)
    assert made.shape == (3, 3, 8, 8)
    assert module.net.training
    module.seed, module.sample_batch = 9, 64
    torch.testing.assert_close(module.made(module.net, [9, 8], labels[1:].flip(0)), made[[2, 1]])
    assert not torch.equal(module.made(module.net, [7], labels[1:2]), made[:1])


def test_the_grid_shows_the_classes_in_turn() -> None:
    module = module_of()
    expected = module.made(module.net, [0, 1, 2], torch.tensor([0, 1, 0]))
    assert torch.equal(module.drawn(module.net, 3), expected)


def test_only_as_many_pictures_as_asked_for_are_scored_and_no_padding() -> None:
    options = ScoreOptions(count=3, metrics=("fd",))
    module = module_of(score=options, sampler=SamplerOptions(solver="euler", nfe=1))
    module.setup("validate")
    for _ in range(2):  # the second validation forgets the first
        module._score.start(1)
        for positions in ((0, 1), (2, 3), (4, 5)):
            batch = batch_of(*positions)
            if positions[0] == 4:
                batch["weight"] = torch.tensor([1.0, 0.0])
            module.score(module.net, batch)
        scores = module._score.compute()
    assert (scores["n_real"], scores["n_fake"]) == (5, 3)
    assert scores["fd_pixels"] > 0


def test_a_square_with_a_short_last_row_stays_white_where_no_picture_is() -> None:
    black = torch.zeros(1, 3, 2, 2)
    sheet = tile([{"0": black, "1": black}, {"0": black}])
    assert sheet.shape == (8, 8, 3)
    assert sheet[:2, :2].max() == sheet[:2, 6:].max() == sheet[6:, :2].max() == 0
    assert sheet[6:, 2:].min() == sheet[2:6].min() == 255


@pytest.mark.parametrize(
    "net", [pytest.param((DiT, DIT), id="DiT"), pytest.param((DiMSUM, DIMSUM), id="DiMSUM")]
)
def test_a_generation_learns_the_colours_of_its_classes(
    net: tuple[type[Network], dict[str, Any]],
) -> None:
    """Flat red-ish and blue-ish pictures: what is made of a label has its colour."""
    torch.manual_seed(0)
    sampler = SamplerOptions(solver="euler", nfe=12)
    kind, options = net
    module = FlowGeneration(kind(**options), sampler=sampler, guidance=Guidance(scale=1.2))
    module._decoder = decoder_of(3, None)
    optimizer = torch.optim.Adam(module.parameters(), lr=3e-3)
    for step in range(150):
        batch = batch_of(*range(step * 16, step * 16 + 16))
        batch["image"] = batch["image"].float()
        loss = module.losses(batch)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    labels = torch.tensor([0, 1] * 4)
    made = module.made(module.net, list(range(8)), labels).mean(dim=(2, 3))
    wanted = torch.stack([torch.from_numpy(flat(k)).double().mean((0, 1)) / 255 for k in (0, 1)])
    right = (made - wanted[labels].float()).norm(dim=1)
    wrong = (made - wanted[1 - labels].float()).norm(dim=1)
    assert (right < 0.4 * wrong).all(), (right, wrong)
