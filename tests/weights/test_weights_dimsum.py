"""Published DiMSUM weights: what is read from the tensors, and one line for every other file."""

from __future__ import annotations

import argparse
import io
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lit_restore.cli.main import main
from lit_restore.errors import UserError
from lit_restore.io.tensors import load_tensors, read_metadata, save_tensors
from lit_restore.networks import DiMSUM, DiT, UNet
from lit_restore.weights import load_dimsum, load_exported, save_exported
from lit_restore.weights.dimsum import to_official
from lit_restore.weights.exported import read_info

OPTIONS: dict[str, Any] = {
    "channels": 3, "size": 8, "width": 32, "depth": 4, "classes": 5, "state": 4,
    "fusion_heads": 2, "conditioning": "inert",
}  # fmt: skip
HEADS: dict[str, Any] = {"fusion_heads": 2}

State = dict[str, Tensor]


def network(**changes: Any) -> DiMSUM:
    torch.manual_seed(0)
    net = DiMSUM(**{**OPTIONS, **changes})
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(0.1 * torch.randn_like(parameter))
    return net.eval()


@pytest.fixture
def official() -> State:
    return to_official(network())


def write(path: Path, state: State) -> Path:
    with path.open("wb") as file:
        save_tensors(file, state)
    return path


def given() -> tuple[Tensor, Tensor, Tensor]:
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return x, torch.tensor([0.2, 0.7]), torch.tensor([0, 4])


# What follows from the tensors --------------------------------------------------------------------


def test_a_network_is_configured_by_its_tensors(official: State) -> None:
    net = load_dimsum(official, **HEADS)
    assert net.options == network().options
    assert net.options["attention_every"] == 4
    assert net.options["attention_heads"] == 16
    assert torch.equal(net(*given()), network()(*given()))


@pytest.mark.parametrize(
    "change",
    [{"attention_every": 2}, {"attention_heads": 4}, {"fusion": "k"}, {"fusion_heads": 4}],
)
def test_what_no_tensor_shows_is_an_option(change: dict[str, Any]) -> None:
    net = network(**change)
    loaded = load_dimsum(to_official(net), **{**HEADS, **change})
    assert torch.equal(loaded(*given()), net(*given()))
    as_released = load_dimsum(to_official(net), **HEADS)
    assert not torch.equal(as_released(*given()), net(*given()))


@pytest.mark.parametrize(
    "change",
    [
        {"classes": 0}, {"patch": 1, "size": 4}, {"state": 3}, {"taps": 2}, {"expand": 1},
        {"mlp_ratio": 2}, {"attention_every": 0}, {"conditioning": "none"}, {"final_norm": True},
    ],
)  # fmt: skip
def test_every_shape_is_found_again(change: dict[str, Any]) -> None:
    net = network(**change)
    loaded = load_dimsum(to_official(net), **HEADS)
    assert loaded.options == net.options
    for name, tensor in net.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_keep_their_values(official: State, dtype: torch.dtype) -> None:
    net = load_dimsum({name: tensor.to(dtype) for name, tensor in official.items()}, **HEADS)
    again = to_official(net)
    wanted = torch.float64 if dtype == torch.float64 else torch.float32
    assert {tensor.dtype for tensor in again.values()} == {wanted}
    for name, tensor in official.items():
        assert torch.equal(again[name].to(dtype), tensor.to(dtype)), name


def test_the_prefix_of_a_distributed_training_is_taken_off(official: State) -> None:
    wrapped = {f"module.{name}": tensor for name, tensor in official.items()}
    assert torch.equal(load_dimsum(wrapped, **HEADS)(*given()), network()(*given()))


def test_the_haar_filters_need_not_be_there(official: State) -> None:
    bare = {k: t for k, t in official.items() if ".dwt." not in k and ".idwt." not in k}
    assert len(official) - len(bare) == 5 * 4
    assert load_dimsum(bare, **HEADS).options == network().options


# Files --------------------------------------------------------------------------------------------


def training_file(path: Path, official: State, **over: object) -> Path:
    """A training's own file, its arguments beside the weights."""
    last = {name: tensor + 1 for name, tensor in official.items()}
    content = {"epoch": 3, "model": last, "ema": official, "opt": {"state": {}},
               "args": argparse.Namespace(model="DiM-L/2", path_type="GVP")}  # fmt: skip
    torch.save({**content, **over}, path)
    return path


def test_a_training_file_gives_its_averaged_weights_or_the_last(
    official: State, tmp_path: Path
) -> None:
    path = training_file(tmp_path / "w.pt", official)
    name = "head.weight"
    average, last = (load_dimsum(path, which=which, **HEADS) for which in ("ema", "model"))
    assert torch.equal(load_dimsum(path, **HEADS).state_dict()[name], average.state_dict()[name])
    assert torch.equal(average.state_dict()[name], official["final_layer.linear.weight"])
    assert torch.equal(last.state_dict()[name], average.state_dict()[name] + 1)
    only = training_file(tmp_path / "m.pt", official, ema=None)
    assert torch.equal(load_dimsum(only, **HEADS).state_dict()[name], last.state_dict()[name])


class Code:
    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, ("touch touched",)


def test_code_in_a_file_is_refused_and_not_run(
    official: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = training_file(tmp_path / "w.pt", official, args=Code())
    with pytest.raises(UserError, match=r"needs posix\.system, refused"):
        load_dimsum(path)
    (tmp_path / "bare.pt").write_bytes(pickle.dumps({"ema": Code()}))
    with pytest.raises(UserError, match="old pickle format, refused"):
        load_dimsum(tmp_path / "bare.pt")
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.95])
def test_a_truncated_file_is_one_line(
    suffix: str, share: float, official: State, tmp_path: Path
) -> None:
    path = tmp_path / f"w{suffix}"
    if suffix == ".pt":
        training_file(path, official)
    else:
        write(path, official)
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(UserError) as error:
        load_dimsum(path)
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)


def test_a_flipped_bit_is_found(official: State, tmp_path: Path) -> None:
    path = training_file(tmp_path / "w.pt", official)
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        largest = max(archive.infolist(), key=lambda member: member.file_size)
    data[largest.header_offset + 400] ^= 4
    path.write_bytes(data)
    with pytest.raises(UserError, match="CRC"):
        load_dimsum(path)


# Other checkpoints --------------------------------------------------------------------------------


def without(*parts: str) -> Callable[[State], State]:
    return lambda state: {k: t for k, t in state.items() if not any(p in k for p in parts)}


def having(**tensors: Tensor) -> Callable[[State], State]:
    return lambda state: {**state, **{k.replace("__", "."): t for k, t in tensors.items()}}


def damaged(name: str, value: float, place: int = 0) -> Callable[[State], State]:
    def change(state: State) -> State:
        tensor = state[name].clone()
        tensor.view(-1)[place] = value
        return {**state, name: tensor}

    return change


def reshaped(name: str, *shape: int) -> Callable[[State], State]:
    return lambda state: {**state, name: torch.zeros(shape)}


A_LOG = "blocks.0.spatial_mamba.mixer.A_log"
WRONG: dict[str, tuple[Callable[[State], State], str]] = {
    "empty": (lambda _: {}, "is no DiMSUM: pos_embed is missing"),
    "a DiT": (lambda _: DiT(width=32, heads=2).state_dict(), "spatial_mamba.mixer.A_log is missi"),
    "no block in the middle": (without("blocks.2."), "holds block 3, but no block 2"),
    "no first block": (without("blocks.0."), f"is no DiMSUM: {A_LOG} is missing"),
    "a block too far": (
        having(blocks__9__norm__weight=torch.zeros(32)), "holds block 9, but no block 4",
    ),
    "a block of millions": (
        having(blocks__999999__norm__weight=torch.zeros(32)), "holds block 999999, but no block 4",
    ),
    "half a block": (
        having(blocks__4__norm__weight=torch.zeros(32)), "blocks.4.spatial_mamba.mixer.",
    ),
    "a tensor less": (
        without("blocks.3.proj.qkv2.bias"), "blocks.3.proj.qkv2.bias is missing, expected (48,)",
    ),
    "a tensor more": (having(head__bias=torch.zeros(3)), "1 tensors more than DiMSUM has: head.bi"),
    "another width within": (
        reshaped("blocks.1.norm.weight", 48), "norm.weight has shape (48,), expected (32,)",
    ),
    "a wide kernel": (
        reshaped("x_embedder.proj.weight", 32, 3, 2, 4), "has shape (32, 3, 2, 4), expected (32, 3",
    ),
    "no axis": (reshaped("pos_embed"), "is no DiMSUM: pos_embed has shape ()"),
    "an empty axis": (reshaped("pos_embed", 1, 16, 0), "pos_embed has shape (1, 16, 0)"),
    "no square": (reshaped("pos_embed", 1, 15, 32), "15 tokens, which is no square grid"),
    "a grid of 6x6": (
        reshaped("pos_embed", 1, 36, 32), "levels: 2 do not fit a grid of 6x6 tokens",
    ),
    "an odd width": (reshaped("pos_embed", 1, 16, 31), "cannot be built"),
    "too narrow inside": (reshaped(A_LOG, 1, 4), "expand: expects a positive integer, got 0"),
    "asks for terabytes": (
        having(
            pos_embed=torch.zeros(1, 16, 200_000),
            blocks__0__spatial_mamba__mixer__A_log=torch.zeros(200_000, 1),
            blocks__0__mlp__w3__weight=torch.zeros(1, 200_000),
        ),
        ", expected (200000, ",
    ),
    "no shared block": (without("attn_block.attn.qkv.weight"), "more than DiMSUM has: attn_block."),
    "gathered scans": (
        having(blocks__0__spatial_mamba__mixer__zigzag_paths=torch.zeros(4, 16, dtype=torch.int64)),
        "zigzag_paths: gathered scan orders were never released",
    ),
    "not a number": (
        damaged("blocks.3.norm.weight", float("nan")),
        "blocks.3.norm.weight holds 1 non-finite value",
    ),
    "infinite": (
        damaged("final_layer.linear.bias", float("inf")), "final_layer.linear.bias holds 1 non-fi",
    ),
    "counts": (
        lambda s: {**s, "pos_embed": s["pos_embed"].long()}, "pos_embed holds int64, not weights",
    ),
    "eighths": (
        lambda s: {**s, "pos_embed": s["pos_embed"].to(torch.float8_e4m3fn)},
        "pos_embed holds float8_e4m3fn, not weights",
    ),
    "complex": (lambda s: {**s, "pos_embed": s["pos_embed"] + 0j}, "pos_embed holds complex64"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_another_checkpoint_is_one_line_that_names_what_differs(
    case: str, official: State, tmp_path: Path
) -> None:
    change, message = WRONG[case]
    path = write(tmp_path / "w.safetensors", change(official))
    with pytest.raises(UserError) as error:
        load_dimsum(path, **HEADS)
    assert error.value.where == str(path)
    assert message in error.value.message
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": 10}, "has classes 5, not 10"),
        ({"depth": 8}, "has depth 4, not 8"),
        ({"size": [8, 16]}, "has size 8, not [8, 16]"),
        ({"final_norm": True}, "has final_norm False, not True"),
        ({"attention_every": 6}, "after how many of them it is applied no tensor says"),
        ({"attention_heads": 5}, "cannot be built: attention_heads: do not divide width 32"),
        ({"conditioning": "none"}, "16 tensors more than DiMSUM has: blocks.0.freq_mamba.mixer.co"),
        ({"heads": 3}, "DiMSUM has no option heads"),
    ],
)
def test_an_option_that_contradicts_the_tensors_is_one_line(
    options: dict[str, Any], message: str, official: State
) -> None:
    with pytest.raises(UserError) as error:
        load_dimsum(official, **{**HEADS, **options})
    assert error.value.where == "the state dict"
    assert message in error.value.message


def test_options_that_the_tensors_confirm_may_be_given(official: State) -> None:
    net = load_dimsum(official, classes=5, size=[8, 8], depth=4, **HEADS)
    assert torch.equal(net(*given()), network()(*given()))


@pytest.mark.parametrize(
    "change",
    [
        {"time_scale": 1000.0}, {"layout": "subband"}, {"wavelet": "db2"}, {"levels": 1},
        {"scan": "zigzag-8"}, {"wavelet_scan": "raster"}, {"conditioning": "prefix"},
        {"qk_norm": True}, {"size": [8, 16]},
    ],
)  # fmt: skip
def test_what_the_release_would_compute_otherwise_is_not_exported(change: dict[str, Any]) -> None:
    option = next(iter(change))
    with pytest.raises(UserError, match="has no place in the published layout") as error:
        to_official(network(**change))
    assert error.value.where == option


README = Path(__file__).parents[2] / "README.md"


def test_the_readmes_example_runs_as_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    example = README.read_text().split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(tmp_path)
    torch.save(to_official(network(fusion_heads=8)), "pytorch_model.bin")
    names: dict[str, Any] = {}
    exec(compile(example, "README.md", "exec"), names)
    assert names["velocity"].shape == names["x"].shape
    assert names["out"].shape == names["u"].shape
    assert names["published"].options == network(fusion_heads=8).options


# The commands -------------------------------------------------------------------------------------


def command(*words: str | Path) -> int:
    return main([str(word) for word in words])


def test_official_to_ours_and_back_is_bit_equal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Heads as released, which `convert` takes for granted.
    state = to_official(network(fusion_heads=8))
    path = training_file(tmp_path / "w.pt", state)
    ours, back = tmp_path / "ours.safetensors", tmp_path / "back.safetensors"
    assert command("convert", "--from", "dimsum", path, "--out", ours) == 0
    assert command("export", ours, "--format", "dimsum", "--out", back) == 0
    again = load_tensors(back)
    assert set(again) == set(state)
    assert all(torch.equal(again[name], tensor) for name, tensor in state.items())
    info = read_info(ours)
    assert (info["task"], info["source"]) == ("generation", "w.pt")
    assert info["config"] == {"model": {"interpolant": "gvp", "prediction": "velocity"}}
    assert read_metadata(back)["format"] == "pt"
    assert '"attention_every": 4' in read_metadata(back)["dimsum"]
    assert "DiMSUM, " in capsys.readouterr().out
    last = ["--weights", "model", "--out", tmp_path / "last.safetensors"]
    assert command("convert", "--from", "dimsum", path, *last) == 0
    head = load_exported(tmp_path / "last.safetensors").state_dict()["head.bias"]
    assert torch.equal(head, state["final_layer.linear.bias"] + 1)


def test_each_mistake_is_one_line_and_leaves_nothing(
    official: State, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flat, unet = write(tmp_path / "flat.safetensors", official), tmp_path / "unet.safetensors"
    save_exported(unet, UNet(widths=[4], depths=[1]), info={"task": "denoiser"})
    scaled = tmp_path / "scaled.safetensors"
    save_exported(scaled, network(time_scale=1000.0), info={"task": "generation"})
    plain = tmp_path / "plain.safetensors"
    save_exported(plain, network(), info={"task": "generation"})
    np.savez(tmp_path / "f.npz", **{"conv0.weight": np.zeros(3)})
    out, here = ["--out", tmp_path / "new.safetensors"], sorted(os.listdir(tmp_path))
    table: list[tuple[list[Any], str]] = [
        (["convert", "--from", "dimsum", flat, "--weights", "ema", *out], "holds one set of weigh"),
        (["convert", "--from", "ffdnet", tmp_path / "f.npz", "--weights", "ema", *out],
         "--weights: files of ffdnet hold one set; leave it out"),
        (["convert", "--from", "dimsum", unet, *out], "is no DiMSUM: pos_embed is missing"),
        (["convert", "--from", "dimsum", tmp_path / "no.pt", *out], "no such file"),
        (["export", unet, "--format", "dimsum", *out], "holds a UNet; --format dimsum is for DiM"),
        (["export", scaled, "--format", "dimsum", *out], "time_scale: 1000.0 has no place in the"),
        (["export", plain, "--format", "dimsum", "--out", tmp_path / "a.pt"], "must end in .safe"),
    ]  # fmt: skip
    for argv, message in table:
        assert command(*argv) == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        assert printed.err.count("\n") == 1
        assert message in printed.err
    assert sorted(os.listdir(tmp_path)) == here


def test_a_training_state_in_memory_is_refused_in_one_line(official: State) -> None:
    with pytest.raises(UserError, match="state dict inside"):
        load_dimsum({"ema": official, "epoch": 3})  # type: ignore[dict-item]
    with pytest.raises(UserError, match="leave ema out"):
        load_dimsum(official, which="ema")
