"""Training a fusion: its loss by hand, what is drawn, and that what is frozen stays so."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from conftest import picture
from support_restoration import FUSION, SCALE, digest, moved, save_denoiser, save_restorer
from torch import Tensor, nn

from lit_restore.data.batch import Batch
from lit_restore.diffusion.discrete import DiscreteDiffusion
from lit_restore.errors import UserError
from lit_restore.io.quantise import to_uint8
from lit_restore.networks import FusionNet, Network, TimeAverage, UNet
from lit_restore.seeding import torch_generator
from lit_restore.training import FusionTraining
from lit_restore.weights import load_exported, save_exported


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A denoiser and a restoration network."""
    folder = tmp_path_factory.mktemp("networks")
    save_denoiser(folder / "denoiser.safetensors")
    save_restorer(folder / "restorer.safetensors")
    return folder


def module_of(
    folder: Path, net: Network | None = None, *, restored: bool = False, **options: Any
) -> FusionTraining:
    """In float64, off its start; `restored`: without a restoration network."""
    torch.manual_seed(0)
    given = {} if restored else {"restorer": str(folder / "restorer.safetensors")}
    given |= {"denoiser": str(folder / "denoiser.safetensors"), **options}
    return FusionTraining(moved(FusionNet(**FUSION)) if net is None else net, **given).double()


def batch_of(*positions: int, height: int = 12, width: int = 16, scale: int = SCALE) -> Batch:
    images = np.stack([picture(p, height, width) for p in positions]).transpose(0, 3, 1, 2)
    clean = torch.from_numpy(images / 255)
    return Batch(
        image=clean,
        degraded=nn.functional.avg_pool2d(clean, scale),
        key=[f"shard/{p}" for p in positions],
        position=torch.tensor(positions),
    )


def loss_of(module: FusionTraining, batch: Batch) -> float:
    return float(module.losses(batch)["loss"].detach())


class Calls:
    """Shapes of what a network is called with."""

    def __init__(self, net: nn.Module) -> None:
        self.seen: list[tuple[int, ...]] = []
        net.register_forward_pre_hook(lambda _, given: self.seen.append(tuple(given[0].shape)))


# The loss -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("times", [1, 3])
def test_the_loss_is_the_error_at_drawn_times_of_drawn_noise(folder: Path, times: int) -> None:
    """Eq. 6 and 7, term by term, with the two networks as their files have them."""
    module, batch = module_of(folder, times_per_image=times, seed=7), batch_of(4, 9)
    denoiser = load_exported(folder / "denoiser.safetensors").double()
    restorer = load_exported(folder / "restorer.safetensors").double()
    alpha_bar = DiscreteDiffusion().alpha_bar
    errors = []
    for image, degraded, p in zip(batch["image"], batch["degraded"], (4, 9), strict=True):
        drawn = torch.randint(1, 251, (times,), generator=torch_generator(7, p, "time"))
        source = torch_generator(7, p, "noise")
        for t in drawn:
            noise = torch.randn(image.shape, generator=source, dtype=torch.float64)
            bar = alpha_bar[t]
            x_t = bar.sqrt() * image + (1 - bar).sqrt() * noise
            sigma = ((1 - bar) / bar).sqrt()
            denoised = denoiser((x_t / bar.sqrt())[None], sigma[None])
            estimate = module.net(restorer(degraded[None]), denoised, t[None])
            errors.append((estimate - image).square().mean())
    expected = torch.stack(errors).detach()
    found = module.losses(batch)
    assert float(found["loss"].detach()) == pytest.approx(float(expected.mean()), rel=1e-10)
    psnr = float((-10 * expected.log10()).mean())
    assert float(found["psnr"]) == pytest.approx(psnr, rel=1e-10)


def test_what_is_drawn_is_a_function_of_seed_and_position(folder: Path) -> None:
    module = module_of(folder, times_per_image=2, seed=3, t_max=40)
    clean = batch_of(0, 1, 2)["image"]
    t, noise = module.drawn_times(clean, [5, 6, 7])
    assert t.shape == (6,)
    alone_t, alone = module.drawn_times(clean[:1], [6])
    assert torch.equal(t[2:4], alone_t)
    assert torch.equal(noise[2:4], alone)
    assert not torch.equal(noise[2], noise[3])
    module.seed = 4
    assert not torch.equal(module.drawn_times(clean, [5, 6, 7])[1], noise)


def test_times_are_uniform_up_to_t_max(folder: Path) -> None:
    module = module_of(folder, t_max=4, restored=True)
    t, _ = module.drawn_times(torch.zeros(1, 1, 1, 1), list(range(2000)))
    counts = torch.bincount(t, minlength=5)
    assert counts[0] == 0
    assert len(counts) == 5
    assert ((counts[1:] - 500).abs() < 4 * (2000 * 0.25 * 0.75) ** 0.5).all()


def test_the_loss_of_a_batch_is_the_mean_of_its_parts_in_any_order(folder: Path) -> None:
    module = module_of(folder, times_per_image=2)
    whole = loss_of(module, batch_of(0, 1, 2, 3))
    parts = loss_of(module, batch_of(3, 0)) + loss_of(module, batch_of(2, 1))
    assert parts / 2 == pytest.approx(whole, rel=1e-12)
    assert loss_of(module, batch_of(4, 5, 6, 7)) != pytest.approx(whole, rel=1e-3)


def test_the_restoration_network_is_called_once_for_all_times_of_an_image(folder: Path) -> None:
    module = module_of(folder, times_per_image=3)
    assert module.restorer is not None
    restorer, denoiser, fusion = Calls(module.restorer), Calls(module.denoiser), Calls(module.net)
    module.losses(batch_of(0, 1))
    assert restorer.seen == [(2, 3, 6, 8)]
    assert denoiser.seen == fusion.seen == [(6, 3, 12, 16)]


def test_restored_images_of_the_shards_are_taken_in_the_place_of_the_network_s(
    folder: Path,
) -> None:
    module, batch = module_of(folder), batch_of(0, 1)
    made = module.restored(batch)
    assert module.restorer is not None
    calls = Calls(module.restorer)
    assert loss_of(module, {**batch, "restored": made}) == loss_of(module, batch)
    assert len(calls.seen) == 1
    other = loss_of(module, {**batch, "restored": made.flip(-1)})
    assert len(calls.seen) == 1
    assert other != loss_of(module, batch)
    without = module_of(folder, restored=True)
    assert loss_of(without, {**batch, "restored": made}) == loss_of(module, batch)


# Frozen -------------------------------------------------------------------------------------------


def test_training_steps_change_the_fusion_alone(folder: Path) -> None:
    module = module_of(folder)
    module.train()
    assert module.restorer is not None
    frozen = nn.ModuleList([module.denoiser, module.restorer])
    assert not any(part.training for net in frozen for part in net.modules())
    assert module.net.training
    before, fusion = copy.deepcopy(frozen.state_dict()), copy.deepcopy(module.net.state_dict())
    optimiser = module.optimizer_options.build(module.parameters())
    trained = {id(p) for group in optimiser.param_groups for p in group["params"]}
    assert trained == {id(p) for p in module.net.parameters()}
    for step in range(3):
        optimiser.zero_grad()
        module.losses(batch_of(2 * step, 2 * step + 1))["loss"].backward()
        optimiser.step()
    assert all(torch.equal(tensor, before[name]) for name, tensor in frozen.state_dict().items())
    assert all(p.grad is None and not p.requires_grad for p in frozen.parameters())
    changed = module.net.state_dict()
    assert all(not torch.equal(tensor, changed[name]) for name, tensor in fusion.items())


def test_the_frozen_networks_are_named_by_their_weights(folder: Path) -> None:
    names = {name: digest(folder / f"{name}.safetensors") for name in ("denoiser", "restorer")}
    assert module_of(folder).frozen == names
    assert module_of(folder, restored=True).frozen == {"denoiser": names["denoiser"]}


# Validation ---------------------------------------------------------------------------------------


def test_validation_scores_the_estimate_at_each_time_whatever_the_seed(folder: Path) -> None:
    module, batch = module_of(folder, val_times=(5, 200)), batch_of(0, 1, 2)
    rows = module.score(module.net, batch)
    assert list(rows[0]) == ["psnr_rgb", "psnr_rgb_restored", "psnr_rgb_t5", "psnr_rgb_t200"]
    for k, row in enumerate(rows):
        assert row["psnr_rgb"] == pytest.approx((row["psnr_rgb_t5"] + row["psnr_rgb_t200"]) / 2)
        estimate, truth = (
            to_uint8(x)[k].astype(float) for x in (module.restored(batch), batch["image"])
        )
        wanted = 10 * np.log10(255**2 / ((estimate - truth) ** 2).mean())
        assert row["psnr_rgb_restored"] == pytest.approx(wanted)
    module.seed = 9
    later = {**batch, "position": batch["position"] + 5}
    assert module.score(module.net, later) == rows
    assert module.score(module.net, batch_of(2)) == [rows[2]]


def test_pictures_are_columns_of_one_size_and_the_same_every_time(folder: Path) -> None:
    module, batch = module_of(folder, val_tau=3), batch_of(0)
    with torch.no_grad():
        shown = module.pictures(module.net, batch)
        again = module.pictures(module.net, batch)
    assert list(shown) == ["degraded", "restored", "tau 3", "clean"]
    assert {tuple(image.shape) for image in shown.values()} == {(1, 3, 12, 16)}
    assert all(torch.equal(image, again[name]) for name, image in shown.items())
    assert not torch.equal(shown["tau 3"], shown["restored"])


# Mistakes -----------------------------------------------------------------------------------------


def test_what_the_data_lack_is_said_with_the_option_that_mends_it(folder: Path) -> None:
    module = module_of(folder)
    clean = cast(Batch, {k: v for k, v in batch_of(0).items() if k != "degraded"})
    with pytest.raises(UserError, match=r"^data\.degradation: the data hold no degraded images"):
        module.losses(clean)
    line = r"^model\.restorer: a scale of 2 does not fit: the degraded images are 4 times smaller"
    with pytest.raises(UserError, match=line):
        module.losses(batch_of(0, scale=4))
    with pytest.raises(UserError, match=r"^model\.restorer: is needed: the data hold no restored"):
        module_of(folder, restored=True).losses(batch_of(0))


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"t_max": 0}, r"^model\.t_max: 0 is below 1"),
        ({"t_max": 1001}, r"^model\.t_max: 1001 is above steps"),
        ({"steps": 100}, r"^model\.t_max: 250 is above steps"),
        ({"steps": 0}, r"^model\.steps: 0 is below 1"),
        ({"beta_max": 1e-5}, r"^model\.beta_max: 1e-05 is below beta_min 0\.0001"),
        ({"val_times": (5, 2000)}, r"^model\.val_times: 2000 is not within 1 to t_max"),
        ({"val_times": ()}, r"^model\.val_times: needs at least one time"),
        ({"val_tau": 0}, r"^model\.val_tau: 0 is not within"),
        ({"times_per_image": 0}, r"^model\.times_per_image: 0 is below 1"),
    ],
    ids=str,
)
def test_options_out_of_range_are_refused_with_their_key(
    folder: Path, options: dict[str, Any], line: str
) -> None:
    with pytest.raises(UserError, match=line):
        module_of(folder, **options)


def test_each_network_is_the_kind_it_has_to_be(folder: Path) -> None:
    names = {name: str(folder / f"{name}.safetensors") for name in ("denoiser", "restorer")}
    line = r"^model\.denoiser: .*restorer\.safetensors holds a EDSR, a denoiser is needed: one of U"
    with pytest.raises(UserError, match=line):
        module_of(folder, denoiser=names["restorer"])
    with pytest.raises(UserError, match=r"denoiser\.safetensors: .*takes a noise level"):
        module_of(folder, restorer=names["denoiser"])
    grey = folder / "grey.safetensors"
    save_exported(grey, UNet(widths=[4], depths=[1], channels=1), info={"task": "denoiser"})
    with pytest.raises(
        UserError, match=r"^model\.denoiser: .*grey\.safetensors is for grey images"
    ):
        module_of(folder, denoiser=str(grey))
    with pytest.raises(UserError, match="no such file"):
        module_of(folder, denoiser=str(folder / "nowhere.safetensors"))


# Learning -----------------------------------------------------------------------------------------


class ExactDenoiser(nn.Module):
    """E[x_0 | x_0 + σn] of white images of mean 1/2 and deviation SPREAD."""

    multiple = 1

    def forward(self, noisy: Tensor, sigma: Tensor) -> Tensor:
        gain = SPREAD**2 / (SPREAD**2 + sigma.square().view(-1, 1, 1, 1))
        return 0.5 + gain * (noisy - 0.5)


SPREAD, NOISE = 1.0, 0.2


def toy(*positions: int) -> Batch:
    """White images, and E[x_0 | y] of y = x_0 + NOISE · n."""
    generators = [torch.Generator().manual_seed(p) for p in positions]
    x, n = (
        torch.stack([torch.randn(3, 8, 8, generator=g, dtype=torch.float64) for g in generators])
        for _ in range(2)
    )
    clean = 0.5 + SPREAD * x
    gain = SPREAD**2 / (SPREAD**2 + NOISE**2)
    restored = 0.5 + gain * (clean + NOISE * n - 0.5)
    return cast(Batch, {"image": clean, "restored": restored, "position": torch.tensor(positions)})


def test_a_fusion_of_exact_estimates_learns_to_be_better_than_both(folder: Path) -> None:
    """Where prior and posterior are Gaussian the best weights are known: those of the precisions.

    The prior being wide, they add up to one almost, as those of an average must.
    """
    torch.manual_seed(0)
    module = module_of(folder, TimeAverage(), restored=True, t_max=100)
    module.denoiser = ExactDenoiser()  # type: ignore[assignment]
    optimiser = torch.optim.Adam(module.net.parameters(), lr=1e-2)
    for step in range(150):
        loss = module.losses(toy(*range(16 * step, 16 * step + 16)))["loss"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    batch = toy(*range(10**6, 10**6 + 64))
    noise = torch.randn(batch["image"].shape, dtype=torch.float64)
    for time in (30, 60, 95):
        t = torch.full((64,), time)
        denoised = module.denoised(module.diffusion.diffuse(batch["image"], t, noise), t)
        with torch.no_grad():
            fused = module.net(batch["restored"], denoised, t)
        errors = [
            float((image - batch["image"]).square().mean())
            for image in (batch["restored"], denoised, fused)
        ]
        sigma = float(module.diffusion.sigma(time))
        best = 1 / (SPREAD**-2 + NOISE**-2 + sigma**-2)
        assert errors[2] < 0.85 * min(errors[:2]), time
        assert errors[2] < 1.1 * best, time
