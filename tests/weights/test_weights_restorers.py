"""Restoration networks from files: the same network comes back, and nothing partial passes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lit_restore.errors import UserError
from lit_restore.io import tensors
from lit_restore.networks import EDSR, DiT, FFDNet
from lit_restore.weights import save_exported
from lit_restore.weights.restorers import load_restorer, weights_sha256
from tests.conftest import write_tar

Make = Callable[[], nn.Module]


def swinir(**changed: Any) -> nn.Module:
    from spandrel.architectures.SwinIR import SwinIR

    small = {
        "img_size": 48, "in_chans": 3, "embed_dim": 12, "depths": [2, 2], "num_heads": [2, 2],
        "window_size": 8, "mlp_ratio": 2, "upscale": 4, "img_range": 1.0,
        "upsampler": "pixelshuffle", "resi_connection": "1conv",
    }  # fmt: skip
    return SwinIR(**{**small, **changed})


def full_swinir() -> nn.Module:
    return swinir(embed_dim=180, depths=[6] * 6, num_heads=[6] * 6)


def fftformer() -> nn.Module:
    from spandrel.architectures.FFTformer import FFTformer

    return FFTformer()


def small_fftformer() -> nn.Module:
    from spandrel.architectures.FFTformer import FFTformer

    return FFTformer(dim=8, num_blocks=[1, 1, 1], num_refinement_blocks=1)


def nafnet() -> nn.Module:
    from spandrel.architectures.NAFNet import NAFNet

    return NAFNet(width=8, middle_blk_num=1, enc_blk_nums=[1, 1], dec_blk_nums=[1, 1])


def hat() -> nn.Module:
    from spandrel.architectures.HAT import HAT

    return HAT(
        img_size=64, window_size=16, upscale=4, embed_dim=180, depths=[6] * 6, num_heads=[6] * 6,
        mlp_ratio=2, compress_ratio=3, squeeze_factor=30, upsampler="pixelshuffle",
        overlap_ratio=0.5, conv_scale=0.01,
    )  # fmt: skip


def esrgan() -> nn.Module:
    from spandrel.architectures.ESRGAN import ESRGAN

    return ESRGAN(num_filters=8, num_blocks=1, scale=4)


def dncnn() -> nn.Module:
    from spandrel.architectures.DnCNN import DnCNN

    return DnCNN(in_nc=1, out_nc=1, nc=8, nb=17, act_mode="R")


def save(path: Path, net: nn.Module, wrapper: str | None = None) -> Path:
    state = net.state_dict()
    torch.save({wrapper: state} if wrapper else state, path)
    return path


def images(channels: int = 3, height: int = 40, width: int = 48) -> Tensor:
    return torch.rand(2, channels, height, width, generator=torch.Generator().manual_seed(0))


FOREIGN: dict[str, tuple[Make, str | None, int, int]] = {
    "SwinIR": (swinir, "params", 4, 3),
    "FFTformer": (small_fftformer, None, 1, 3),
    "NAFNet": (nafnet, "params", 1, 3),
    "ESRGAN": (esrgan, "params_ema", 4, 3),
    "DnCNN": (dncnn, "state_dict", 1, 1),
}
"""spandrel's name → network, the dictionary its authors save it in, scale, channels."""


@pytest.mark.parametrize("name", FOREIGN)
def test_what_is_loaded_is_the_network_that_was_saved(name: str, tmp_path: Path) -> None:
    make, wrapper, scale, channels = FOREIGN[name]
    net = make().eval()
    loaded = load_restorer(save(tmp_path / "net.pth", net, wrapper), expect_scale=scale)
    # Sides that every one of them takes without padding, but for FFTformer's 32.
    x = images(channels, 32, 64)
    assert loaded.name == name
    assert (loaded.net.scale, loaded.net.in_channels) == (scale, channels)
    with torch.no_grad():
        assert torch.equal(loaded.net(x), net(x))
    assert loaded.net(images(channels, 7, 5)).shape == (2, channels, 7 * scale, 5 * scale)
    assert loaded.sha256 == weights_sha256(net.state_dict())
    assert not any(p.requires_grad for p in loaded.net.parameters())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "count"), [(full_swinir, 11_900_199), (fftformer, 16_560_474), (hat, 20_772_507)]
)
def test_published_sizes_have_the_published_numbers(make: Make, count: int, tmp_path: Path) -> None:
    net = make().eval()
    loaded = load_restorer(save(tmp_path / "net.pth", net, "params"))
    assert sum(p.numel() for p in loaded.net.parameters()) == count
    x = images(3, 32, 32)[:1]
    with torch.no_grad():
        assert torch.equal(loaded.net(x), net(x))


def test_loading_leaves_the_global_generator_alone(tmp_path: Path) -> None:
    path = save(tmp_path / "net.pth", nafnet())
    torch.manual_seed(0)
    load_restorer(path)
    after = torch.rand(3)
    torch.manual_seed(0)
    assert torch.equal(after, torch.rand(3))


def test_the_better_of_two_sets_of_weights_is_taken(tmp_path: Path) -> None:
    raw, averaged = nafnet(), nafnet()
    path = tmp_path / "net.pth"
    torch.save({"params": raw.state_dict(), "params_ema": averaged.state_dict()}, path)
    assert load_restorer(path).sha256 == weights_sha256(averaged.state_dict())


def test_safetensors_and_a_member_of_a_tar_are_read_too(tmp_path: Path) -> None:
    net = nafnet()
    plain = save(tmp_path / "net.pth", net)
    with (tmp_path / "net.safetensors").open("wb") as file:
        tensors.save_tensors(file, net.state_dict(), {})
    write_tar(tmp_path / "all.tar", [("nets/net.pth", plain.read_bytes())])
    hashes = {
        load_restorer(path).sha256
        for path in (plain, tmp_path / "net.safetensors", f"{tmp_path}/all.tar:nets/net.pth")
    }
    assert len(hashes) == 1


TABLE = "layers.0.residual_group.blocks.0.attn.relative_position_bias_table"


def without(state: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key: tensor for key, tensor in state.items() if key != name}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: without(s, "conv_after_body.bias"), r"1 missing \(first conv_after_body.bias\)"),
        (lambda s: {**s, "more.weight": torch.ones(1)}, r"1 unexpected \(first more.weight\)"),
        (lambda s: {**s, "norm.weight": torch.ones(5)}, r"1 of another size \(first norm.weight\)"),
        (lambda s: {**s, "norm.bias": torch.full((12,), torch.nan)}, "norm.bias holds non-finite"),
        (lambda s: without(s, "conv_first.weight"), "holds no restoration network that is known"),
        (
            lambda s: without(s, TABLE),
            r"is no whole SwinIR: tensor .*relative_position_bias_table.* is missing",
        ),
    ],
)  # fmt: skip
def test_missing_partial_and_broken_weights_are_one_line(
    change: Callable[[dict[str, Tensor]], dict[str, Tensor]], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "net.pth"
    torch.save({"params": change(dict(swinir().state_dict()))}, path)
    with pytest.raises(UserError, match=message) as caught:
        load_restorer(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_files_of_nothing_known_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        load_restorer(tmp_path / "none.pth")
    (tmp_path / "text.pth").write_text("no weights here")
    with pytest.raises(UserError, match="not a checkpoint"):
        load_restorer(tmp_path / "text.pth")
    torch.save({"a.weight": torch.ones(2)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match=r"other.pth: holds no restoration network .* a.weight"):
        load_restorer(tmp_path / "other.pth")


def test_a_wrong_scale_is_told_before_anything_runs(tmp_path: Path) -> None:
    path = save(tmp_path / "net.pth", swinir())
    with pytest.raises(UserError, match=r"net.pth: SwinIR enlarges by 4, the task by 2"):
        load_restorer(path, expect_scale=2)


def test_our_networks_are_restorers_where_they_take_images_alone(tmp_path: Path) -> None:
    net = EDSR(width=8, depth=1, scale=2)
    nn.init.normal_(net.exit.weight)
    save_exported(tmp_path / "edsr.safetensors", net, info={"task": "restoration"})
    loaded = load_restorer(tmp_path / "edsr.safetensors", expect_scale=2, tile=64)
    assert (loaded.name, loaded.net.tile, loaded.info["task"]) == ("EDSR", 64, "restoration")
    assert loaded.sha256 == weights_sha256(net.state_dict())
    with torch.no_grad():
        assert torch.equal(loaded.net(images()), net(images()))

    save_exported(tmp_path / "dit.safetensors", DiT(size=8, patch=2, width=16, depth=1, heads=2),
                  info={})  # fmt: skip
    with pytest.raises(UserError, match="holds a DiT, which restores no images"):
        load_restorer(tmp_path / "dit.safetensors")


def test_a_denoiser_is_a_restorer_at_the_noise_level_that_is_given(tmp_path: Path) -> None:
    net = FFDNet(width=8, depth=3)
    save_exported(tmp_path / "ffdnet.safetensors", net, info={})
    with pytest.raises(UserError, match="FFDNet takes a noise level, which pictures"):
        load_restorer(tmp_path / "ffdnet.safetensors")
    loaded = load_restorer(tmp_path / "ffdnet.safetensors", sigma=0.1)
    with torch.no_grad():
        assert torch.equal(loaded.net(images()), net(images(), torch.full((2,), 0.1)))


def test_a_foreign_denoiser_gets_its_map_and_no_level_is_made_up(tmp_path: Path) -> None:
    from spandrel.architectures.DnCNN import DnCNN

    net = DnCNN(in_nc=4, out_nc=3, nc=8, nb=17, act_mode="R", mode="FDnCNN").eval()
    path = save(tmp_path / "net.pth", net)
    with pytest.raises(UserError, match="DnCNN takes a noise level, which pictures"):
        load_restorer(path)
    with torch.no_grad():
        expected = net(torch.cat([images(), torch.full((2, 1, 40, 48), 0.1)], dim=1))
        assert torch.equal(load_restorer(path, sigma=0.1).net(images()), expected)
    with pytest.raises(UserError, match="NAFNet takes no noise level; leave sigma out"):
        load_restorer(save(tmp_path / "naf.pth", nafnet()), sigma=0.1)


def test_networks_of_spectra_keep_float32_under_autocast(tmp_path: Path) -> None:
    loaded = load_restorer(save(tmp_path / "net.pth", small_fftformer()))
    x = images(3, 32, 32)
    with torch.autocast("cpu", torch.bfloat16):
        inside = loaded.net(x)
    assert torch.equal(inside, loaded.net(x))


def test_spandrel_is_imported_by_nobody_who_does_not_need_it() -> None:
    import subprocess
    import sys

    code = "import sys, lit_restore.weights.restorers; print('spandrel' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"
