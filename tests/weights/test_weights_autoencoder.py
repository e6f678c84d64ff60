"""The frozen autoencoder: diffusers' numbers, our scale, and no file that could run anything."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support_autoencoder import FACTOR, change_config, save_autoencoder

from lit_restore.errors import UserError
from lit_restore.weights.autoencoder import (
    WEIGHTS,
    Autoencoder,
    load_autoencoder,
    read_autoencoder_info,
)

SCALE, SHIFT = 0.5, 0.1
IMAGES = torch.rand(3, 3, 16, 24, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Not to be written to."""
    folder = tmp_path_factory.mktemp("vae")
    return save_autoencoder(folder, scaling_factor=SCALE, shift_factor=SHIFT)


@pytest.fixture(scope="module")
def model(saved: Path) -> Autoencoder:
    return load_autoencoder(saved)


@pytest.fixture
def vae(saved: Path, tmp_path: Path) -> Path:
    """A copy to be spoilt."""
    return Path(shutil.copytree(saved, tmp_path / "vae"))


def reference(folder: Path) -> torch.nn.Module:
    from diffusers import AutoencoderKL

    return AutoencoderKL.from_pretrained(folder, use_safetensors=True, local_files_only=True)


def test_moments_are_diffusers_posterior_shifted_and_scaled(
    saved: Path, model: Autoencoder
) -> None:
    mean, std = model.moments(IMAGES)
    with torch.no_grad():
        posterior = reference(saved).encode(2 * IMAGES - 1).latent_dist
    torch.testing.assert_close(mean, (posterior.mean - SHIFT) * SCALE, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(std, posterior.std * SCALE, rtol=1e-5, atol=1e-6)
    assert mean.shape == std.shape == (3, 4, 4, 6)
    assert std.min() > 0


def test_decode_undoes_the_scale_and_gives_images(saved: Path, model: Autoencoder) -> None:
    latents = torch.randn(2, 4, 4, 6, generator=torch.Generator().manual_seed(2))
    images = model.decode(latents)
    with torch.no_grad():
        plain = reference(saved).decode(latents / SCALE + SHIFT).sample
    torch.testing.assert_close(images, (plain / 2 + 0.5).clamp(0, 1), rtol=0, atol=5e-6)
    assert images.shape == (2, 3, 4 * FACTOR, 6 * FACTOR)
    assert 0 <= images.min() < images.max() <= 1
    assert model.decode(1e6 * latents).aminmax() == (0, 1)


def test_its_weights_are_frozen_and_its_decoder_differentiable(model: Autoencoder) -> None:
    latents = torch.zeros(1, 4, 4, 4, requires_grad=True)
    model.decode(latents).sum().backward()
    assert latents.grad is not None
    assert latents.grad.abs().max() > 0
    assert not any(p.requires_grad or p.grad is not None for p in model._model.parameters())
    assert not model._model.training


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_computes_the_same_and_answers_in_float32(
    saved: Path, model: Autoencoder, dtype: torch.dtype
) -> None:
    half = load_autoencoder(saved, dtype=dtype)
    assert half.dtype == dtype
    for ours, exact in zip(half.moments(IMAGES), model.moments(IMAGES), strict=True):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours, exact, rtol=0.1, atol=0.05)
        assert not torch.equal(ours, exact)
    assert half.decode(torch.zeros(1, 4, 4, 4)).dtype == torch.float32


def test_the_names_and_defaults_of_old_files_are_understood(vae: Path, model: Autoencoder) -> None:
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    state = load_file(vae / WEIGHTS)
    renamed = {}
    for name, tensor in state.items():
        found = [new for new in old if f".{new}." in name]
        renamed[name.replace(found[0], old[found[0]]) if found else name] = tensor
    assert len(renamed.keys() - state.keys()) == 16
    save_file(renamed, vae / WEIGHTS)
    change_config(vae, scaling_factor=None, shift_factor=None)
    info = read_autoencoder_info(vae)
    assert (info.scaling_factor, info.shift_factor) == (0.18215, 0.0)
    mean, std = load_autoencoder(vae).moments(IMAGES)
    expected = model.moments(IMAGES)
    torch.testing.assert_close(mean / 0.18215, expected[0] / SCALE + SHIFT)
    torch.testing.assert_close(std / 0.18215, expected[1] / SCALE)


def test_the_identity_is_of_options_and_weights_alone(vae: Path, saved: Path) -> None:
    first = read_autoencoder_info(vae)
    assert first == read_autoencoder_info(saved) == load_autoencoder(saved).info
    assert (first.channels, first.factor, first.scaling_factor) == (4, FACTOR, SCALE)
    change_config(vae, _diffusers_version="9")
    (vae / "README.md").write_text("x")
    assert read_autoencoder_info(vae) == first
    change_config(vae, scaling_factor=0.7)
    assert read_autoencoder_info(vae).sha256 != first.sha256
    change_config(vae, scaling_factor=SCALE)
    save_autoencoder(vae, seed=1, scaling_factor=SCALE, shift_factor=SHIFT)
    assert read_autoencoder_info(vae).sha256 != first.sha256


def test_sizes_that_do_not_divide_are_refused(model: Autoencoder) -> None:
    with pytest.raises(UserError, match="18 is no multiple of the VAE's 4; use 16 or 20"):
        model.moments(torch.zeros(1, 3, 16, 18))


def pickled(vae: Path) -> None:
    (vae / WEIGHTS).unlink()
    torch.save({}, vae / "diffusion_pytorch_model.bin")


def renamed_pickle(vae: Path) -> None:
    torch.save({}, vae / WEIGHTS)


def whole_pipeline(vae: Path) -> None:
    shutil.copytree(vae, vae / "vae")
    (vae / "config.json").unlink()


def not_finite(vae: Path) -> None:
    state = load_file(vae / WEIGHTS)
    state["quant_conv.bias"][0] = torch.nan
    save_file(state, vae / WEIGHTS)


@pytest.mark.parametrize(
    ("spoil", "line"),
    [
        (shutil.rmtree, "vae: no such folder"),
        (pickled, "model.bin: is a pickle, which can run code, and is not read"),
        (renamed_pickle, f"{WEIGHTS}: "),
        (whole_pipeline, "is a whole pipeline; give "),
        (not_finite, "quant_conv.bias holds 1 non-finite value"),
        (lambda vae: (vae / "config.json").unlink(), "vae: holds no config.json"),
        (lambda vae: (vae / WEIGHTS).unlink(), "vae: holds no weights"),
        (lambda vae: (vae / "config.json").write_text("{"), "config.json: is not JSON"),
        (lambda vae: change_config(vae, _class_name="VQModel"), "not that of an AutoencoderKL"),
        (lambda vae: change_config(vae, in_channels=1), "is no autoencoder of RGB pictures"),
        (lambda vae: change_config(vae, scaling_factor="x"), "scaling_factor is no number"),
        (lambda vae: change_config(vae, scaling_factor=0), "must be positive"),
        (lambda vae: change_config(vae, latents_mean=[0.0] * 4), "latents_mean"),
        (lambda vae: change_config(vae, colour="red"), "its options are refused by diffusers"),
        (lambda vae: change_config(vae, act_fn="nothing"), "its options are refused by diffusers"),
        (lambda vae: change_config(vae, latent_channels=5), "tensors match AutoencoderKL"),
        (lambda vae: change_config(vae, block_out_channels=[1 << 20] * 3), "tensors match"),
    ],
)
def test_what_is_no_such_autoencoder_is_refused_in_one_line(
    vae: Path, spoil: Callable[[Path], object], line: str
) -> None:
    spoil(vae)
    with pytest.raises(UserError) as error:
        load_autoencoder(vae)
    assert line in str(error.value)
    assert "\n" not in str(error.value)


def test_two_files_of_weights_are_refused_unless_one_has_the_name(vae: Path) -> None:
    whole = read_autoencoder_info(vae)
    shutil.copy(vae / WEIGHTS, vae / "a.safetensors")
    assert read_autoencoder_info(vae) == whole
    (vae / WEIGHTS).rename(vae / "b.safetensors")
    with pytest.raises(UserError, match=r"holds a\.safetensors and b\.safetensors; keep one"):
        read_autoencoder_info(vae)
    (vae / "b.safetensors").unlink()
    assert read_autoencoder_info(vae) == whole


def test_nothing_is_fetched_from_a_hub() -> None:
    for name in ("hf://owner/name", "https://host/vae"):
        with pytest.raises(UserError, match="is not on this machine; download it first"):
            read_autoencoder_info(name)


def test_without_diffusers_the_line_says_what_to_install(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(UserError, match=r"pip install 'lit-restore\[diffusers\]'"):
        load_autoencoder(saved)
    assert read_autoencoder_info(saved).factor == FACTOR
