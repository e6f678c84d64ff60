"""Restoring images: what it costs, what a sample depends on, and that tiles change nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support_restoration import save_all, save_fusion
from torch import Tensor

from lit_restore.errors import UserError
from lit_restore.inverse import PosteriorOptions
from lit_restore.networks import tiling
from lit_restore.sampling.restoration import Restored, RestoreOptions, check_tau, restore_images
from lit_restore.weights import LoadedFusion, load_fusion


@pytest.fixture
def model(tmp_path: Path) -> LoadedFusion:
    return load_fusion(save_all(tmp_path / "nets"))


def options(tau: int = 5, samples: int = 1, **more: Any) -> RestoreOptions:
    own = {k: more.pop(k) for k in ("estimate", "seed", "tile") if k in more}
    return RestoreOptions(posterior=PosteriorOptions(tau=tau, **more), samples=samples, **own)


def images(count: int = 2, height: int = 7, width: int = 9) -> Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(0))


def restore(model: LoadedFusion, degraded: Tensor, given: RestoreOptions) -> Restored:
    return restore_images(model, degraded, given, [f"k{n}" for n in range(len(degraded))])


class Calls:
    """Shapes of what each network of a model is called with."""

    def __init__(self, model: LoadedFusion) -> None:
        self.seen: dict[str, list[tuple[int, ...]]] = {name: [] for name in model.networks()}
        for name, net in model.networks().items():
            net.register_forward_pre_hook(
                lambda _, given, name=name: self.seen[name].append(tuple(given[0].shape))
            )

    def counts(self) -> tuple[int, ...]:
        """Restoration network, denoiser, fusion."""
        return tuple(len(shapes) for shapes in self.seen.values())


@pytest.mark.parametrize(
    ("given", "counts"),
    [
        (options(5), (1, 5, 5)),
        (options(0), (1, 0, 0)),
        (options(250, steps=4, tail="ddim"), (1, 4, 4)),
        (options(5, samples=3), (1, 15, 15)),
        (options(5, estimate="denoised"), (1, 5, 0)),
        (options(5, estimate="restored"), (1, 0, 0)),
    ],
    ids=["tau 5", "tau 0", "ddim", "samples", "denoised", "restored"],
)
def test_the_restoration_network_is_called_once_and_the_others_at_each_step(
    model: LoadedFusion, given: RestoreOptions, counts: tuple[int, ...]
) -> None:
    calls = Calls(model)
    found = restore(model, images(), given)
    assert calls.counts() == counts
    assert found.images.shape == (2, 3, 14, 18)
    steps = given.posterior.steps or given.posterior.tau
    assert found.nfe == (0 if given.estimate == "restored" else steps)
    assert not found.images.requires_grad


def test_at_tau_0_the_result_is_the_restoration_network_s(model: LoadedFusion) -> None:
    found = restore(model, images(), options(0))
    assert torch.equal(found.images, model.restorer(images()))
    assert torch.equal(found.images, found.regression)
    assert found.deviation is None


def test_of_several_samples_there_are_mean_and_deviation(model: LoadedFusion) -> None:
    found = restore(model, images(), options(20, samples=4))
    assert found.samples.shape == (2, 4, 3, 14, 18)
    torch.testing.assert_close(found.images, found.samples.mean(1))
    assert found.deviation is not None
    centred = found.samples - found.images[:, None]
    torch.testing.assert_close(found.deviation, (centred.square().sum(1) / 3).sqrt())
    assert found.deviation.min() > 0
    fewer = restore(model, images(), options(20, samples=2))
    assert torch.equal(fewer.samples, found.samples[:, :2])


def test_an_image_depends_on_its_key_and_the_seed_and_not_on_its_neighbours(
    model: LoadedFusion,
) -> None:
    whole = restore(model, images(3), options(20)).images
    alone = restore_images(model, images(3)[1:2], options(20), ["k1"]).images
    torch.testing.assert_close(whole[1:2], alone, rtol=0, atol=1e-5)
    for other in (
        restore_images(model, images(3)[1:2], options(20), ["k2"]).images,
        restore_images(model, images(3)[1:2], options(20, seed=1), ["k1"]).images,
    ):
        assert (other - alone).abs().max() > 1e-3


# Tiles --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("automatic", [False, True])
def test_tiles_give_what_one_piece_gives(
    model: LoadedFusion, monkeypatch: pytest.MonkeyPatch, automatic: bool
) -> None:
    """These networks look a few pixels far; a quarter of the overlap is context."""
    degraded = images(1, 12, 170)
    whole = restore(model, degraded, options(6))
    calls = Calls(model)
    if automatic:
        monkeypatch.setattr(tiling, "LARGEST", 1000)
        monkeypatch.setattr(tiling, "TILE", 160)
    tiled = restore(model, degraded, options(6, tile=None if automatic else 160))
    assert set(calls.seen["denoiser"]) == set(calls.seen["fusion"]) == {(1, 3, 24, 160)}
    assert calls.counts() == (1, 24, 24)  # four tiles at each of six steps
    for one, other in ((tiled.regression, whole.regression), (tiled.images, whole.images)):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


def test_the_restoration_network_is_tiled_too_and_whole_again_afterwards(
    model: LoadedFusion,
) -> None:
    seen: list[int] = []
    model.restorer.net.register_forward_pre_hook(lambda _, x: seen.append(x[0].shape[-1]))
    restore(model, images(1, 12, 170), options(0, tile=160))
    assert set(seen) == {80}
    seen.clear()
    restore(model, images(1, 12, 170), options(0, tile=400))
    assert seen == [170]


# Mistakes -----------------------------------------------------------------------------------------


def test_times_that_the_fusion_never_saw_are_refused(model: LoadedFusion) -> None:
    line = r"^tau: 251 is above 250, the largest time that the fusion network was trained for"
    with pytest.raises(UserError, match=line):
        restore(model, images(), options(251, steps=2))
    check_tau(model, options(250))
    check_tau(model, options(251, estimate="denoised"))
    with pytest.raises(UserError, match=r"^tau: 1001 is above the schedule's 1000"):
        restore(model, images(), options(1001, steps=2, estimate="restored"))


def test_the_limit_is_that_of_the_training(tmp_path: Path) -> None:
    path = save_all(tmp_path / "nets")
    short = load_fusion(
        save_fusion(path.with_name("short.safetensors"), config={"model": {"t_max": 5}})
    )
    with pytest.raises(UserError, match=r"^tau: 6 is above 5"):
        restore(short, images(), options(6))
    assert restore(short, images(), options(5)).nfe == 5


@pytest.mark.parametrize(
    ("changes", "where"),
    [({"samples": 0}, "samples"), ({"tile": 63}, "tile"), ({"tile": 0}, "tile"),
     ({"estimate": "both"}, "estimate")],
)  # fmt: skip
def test_options_out_of_range_are_refused_by_name(changes: dict[str, Any], where: str) -> None:
    with pytest.raises(UserError) as caught:
        RestoreOptions(**changes)
    assert caught.value.where == where


@pytest.mark.gpu
def test_a_gpu_gives_what_the_cpu_gives(model: LoadedFusion) -> None:
    """The noise is drawn on the CPU; what is left is the rounding of convolutions."""
    wanted = restore(model, images(2, 20, 24), options(20, samples=2))
    for net in model.networks().values():
        net.to("cuda")
    found = restore(model, images(2, 20, 24).cuda(), options(20, samples=2))
    assert found.images.is_cuda
    torch.testing.assert_close(found.samples.cpu(), wanted.samples, rtol=1e-3, atol=1e-3)
