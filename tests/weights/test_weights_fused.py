"""A fusion is loaded over the networks that it was trained over, or says why not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import write_tar
from support_restoration import (
    DOWNSCALE,
    digest,
    save_all,
    save_denoiser,
    save_fusion,
    save_restorer,
)

from lit_restore.errors import UserError
from lit_restore.networks import EDSR, Network, UNet, apply_padded
from lit_restore.weights import load_exported, load_fusion, save_exported
from lit_restore.weights.fused import GIVEN, recorded_degradation


@pytest.fixture
def fusion(tmp_path: Path) -> Path:
    return save_all(tmp_path / "nets")


def test_it_finds_what_the_training_was_over(fusion: Path) -> None:
    model = load_fusion(fusion)
    names = ("fusion", "denoiser", "restorer")
    assert model.digests == {n: digest(fusion.with_name(f"{n}.safetensors")) for n in names}
    assert list(model.networks()) == ["restorer", "denoiser", "fusion"]
    assert not any(net.training for net in model.networks().values())
    assert (model.restorer.scale, model.source) == (2, fusion)
    assert model.degradation == DOWNSCALE


def test_options_of_the_training_are_taken_and_defaults_where_it_had_none(
    fusion: Path, tmp_path: Path
) -> None:
    plain = load_fusion(fusion)
    assert (plain.t_max, plain.diffusion.steps) == (250, 1000)
    assert plain.diffusion.sigma(251) * 255 == pytest.approx(244.299, abs=1e-3)
    config = {"model": {"t_max": 30, "steps": 40, "beta_min": 0.01, "beta_max": 0.1}}
    other = load_fusion(save_fusion(fusion.with_name("other.safetensors"), config=config))
    assert (other.t_max, other.diffusion.steps) == (30, 40)
    assert [float(other.diffusion.beta[k]) for k in (1, 40)] == pytest.approx([0.01, 0.1])


@torch.no_grad()
def test_its_prior_is_the_three_networks_one_after_another(fusion: Path) -> None:
    model = load_fusion(fusion)
    nets = {n: load_exported(fusion.with_name(f"{n}.safetensors")) for n in model.networks()}
    degraded, x_t = torch.rand(2, 3, 5, 6), torch.randn(2, 3, 10, 12)
    restored, t = model.restorer(degraded), 40
    torch.testing.assert_close(restored, nets["restorer"](degraded))
    bar = model.diffusion.alpha_bar[t]
    sigma = ((1 - bar) / bar).sqrt().float().expand(2)
    denoised = apply_padded(nets["denoiser"], x_t / bar.sqrt().float(), sigma)
    torch.testing.assert_close(model.prior("denoised")(x_t, restored, t), denoised)
    fused = nets["fusion"](restored, denoised, torch.tensor([t, t]))
    torch.testing.assert_close(model.prior()(x_t, restored, t), fused)
    assert model.prior("restored")(x_t, restored, t) is restored


@pytest.mark.parametrize(("name", "save"), [("denoiser", save_denoiser),
                                            ("restorer", save_restorer)])  # fmt: skip
def test_changed_weights_are_refused_unless_they_are_given_again(
    fusion: Path, name: str, save: Any
) -> None:
    place = fusion.with_name(f"{name}.safetensors")
    before = digest(place)
    save(place, seed=5)
    now = digest(place)
    with pytest.raises(UserError) as caught:
        load_fusion(fusion)
    told = f"{place} is not what {fusion} was trained over (sha256 {now[:12]}, then {before[:12]})"
    assert str(caught.value).startswith(f"--{name}: {told}; give it again")
    model = load_fusion(fusion, **{name: place})
    assert model.digests[name] == now


def test_another_denoiser_or_restoration_network_can_be_put_under_it(
    fusion: Path, tmp_path: Path
) -> None:
    denoiser = save_denoiser(tmp_path / "d.safetensors", seed=3)
    restorer = save_restorer(tmp_path / "r.safetensors", seed=3, scale=4)
    model = load_fusion(fusion, denoiser=denoiser, restorer=restorer)
    assert model.digests["denoiser"] == digest(denoiser)
    assert model.digests["restorer"] == digest(restorer)
    assert model.restorer.scale == 4
    wanted = load_exported(denoiser).state_dict()
    assert all(torch.equal(t, wanted[k]) for k, t in model.denoiser.state_dict().items())
    assert load_fusion(fusion, restorer=restorer).digests["denoiser"] != digest(denoiser)


def test_missing_networks_are_asked_for(fusion: Path) -> None:
    place = fusion.with_name("restorer.safetensors")
    kept = place.rename(place.with_name("moved.safetensors"))
    line = rf"^--restorer: {place}, over which {fusion} was trained, is not there; say where it is"
    with pytest.raises(UserError, match=line):
        load_fusion(fusion)
    assert load_fusion(fusion, restorer=kept).restorer.scale == 2
    cached = save_fusion(
        fusion.with_name("cached.safetensors"), config={"model": {"restorer": None}}
    )
    with pytest.raises(UserError, match=rf"^--restorer: is needed: {cached} does not name one"):
        load_fusion(cached)
    assert load_fusion(cached, restorer=kept).digests["restorer"] == digest(kept)


def test_a_restoration_network_in_an_archive_is_found_again(fusion: Path, tmp_path: Path) -> None:
    from spandrel.architectures.ESRGAN import ESRGAN

    torch.save(ESRGAN(num_filters=4, num_blocks=1, scale=2).state_dict(), tmp_path / "w.pth")
    archive = write_tar(tmp_path / "w.tar", [("a/w.pth", (tmp_path / "w.pth").read_bytes())])
    config = {"model": {"restorer": f"{archive}:a/w.pth"}}
    named = save_fusion(fusion.with_name("tar.safetensors"), config=config, frozen={"restorer": ""})
    with pytest.raises(UserError, match=r"^--restorer: .*w\.tar:a/w\.pth is not what "):
        load_fusion(named)
    assert load_fusion(named, restorer=f"{archive}:a/w.pth").restorer.name == "ESRGAN"


def test_what_is_no_fusion_is_refused_by_what_it_holds(fusion: Path) -> None:
    denoiser = fusion.with_name("denoiser.safetensors")
    line = r"denoiser\.safetensors: holds a UNet, trained for denoiser; needed is one of FusionNet"
    with pytest.raises(UserError, match=line):
        load_fusion(denoiser)
    with pytest.raises(UserError, match=r"^--denoiser: .* holds a EDSR, a denoiser is needed"):
        load_fusion(fusion, denoiser=fusion.with_name("restorer.safetensors"))
    with pytest.raises(UserError, match=r"holds a FusionNet, which restores no images"):
        load_fusion(fusion, restorer=fusion)


def test_networks_of_other_channels_are_refused(fusion: Path, tmp_path: Path) -> None:
    grey: dict[str, Network] = {
        "denoiser": UNet(widths=[4], depths=[1], channels=1),
        "restorer": EDSR(width=4, depth=1, channels=1),
    }
    for name, net in grey.items():
        save_exported(tmp_path / name, net, info={})
        with pytest.raises(UserError, match=rf"^--{name}: channels of its images are 1, the"):
            load_fusion(fusion, **{name: tmp_path / name})  # type: ignore[arg-type]


@pytest.mark.parametrize(("name", "value"), [("t_max", "250"), ("steps", True), ("beta_max", [])])
def test_a_damaged_configuration_is_refused(fusion: Path, name: str, value: Any) -> None:
    bad = save_fusion(fusion.with_name("bad.safetensors"), config={"model": {name: value}})
    line = rf"bad\.safetensors: model\.{name}: is damaged: a number is expected"
    with pytest.raises(UserError, match=line):
        load_fusion(bad)


@pytest.mark.parametrize(
    "info", [{}, {"config": None}, {"config": {"data": []}}, {"config": {"data": {}}}], ids=str
)
def test_a_training_without_a_degradation_has_none(info: dict[str, Any]) -> None:
    assert recorded_degradation(info) is None


def test_a_restorer_that_has_run_already_changes_nothing(fusion: Path) -> None:
    model = load_fusion(fusion, restorer=GIVEN)
    restored = torch.rand(1, 3, 7, 5)
    assert torch.equal(model.restorer(restored), restored)
    assert model.digests["restorer"] == GIVEN
