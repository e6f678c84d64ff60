"""What is applied to a network from outside leaves its names alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import encoded, picture, write_tar
from support_runs import largest_difference, last, train, write_recipe

from lit_restore.errors import UserError
from lit_restore.networks import UNet
from lit_restore.parallel.apply import compile_blocks, use_channels_last
from lit_restore.parallel.precision import check_precision
from lit_restore.weights.checkpoint import read_checkpoint


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    write_tar(folder / "t.tar", [(f"{k}.png", encoded(picture(k))) for k in range(5)])
    return folder


def test_compiled_blocks_keep_their_names_and_kernels_their_values() -> None:
    net = UNet(widths=(8, 8), depths=(1, 1))
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    use_channels_last(net)
    compile_blocks(net)
    after = net.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_bf16_trains_with_float32_weights_averages_and_optimiser(
    shards: Path, tmp_path: Path
) -> None:
    recipe = write_recipe(tmp_path, shards)
    run = tmp_path / "run"
    assert train(recipe, run, "--trainer.precision=bf16-mixed") == [0]
    saved = read_checkpoint(last(run))
    tensors = [*saved.network.values(), *saved.averages["ema"].values(), *saved.optimizer.values()]
    assert {tensor.dtype for tensor in tensors} == {torch.float32}


@pytest.mark.parametrize(
    ("options", "fine"),
    [
        ({"precision": "32-true", "accelerator": "cpu", "strategy": "auto"}, True),
        ({"precision": "bf16-mixed", "accelerator": "cpu", "strategy": "fsdp"}, True),
        ({"precision": None}, True),
        ({"precision": "16-mixed", "accelerator": "cpu", "strategy": "ddp"}, False),
        ({"precision": "bf16-true", "accelerator": "cpu", "strategy": "auto"}, False),
    ],
)
def test_only_precisions_that_train_here_pass(options: dict[str, str], fine: bool) -> None:
    if fine:
        check_precision(options)
    else:
        with pytest.raises(UserError, match="bf16-mixed"):
            check_precision(options)


@pytest.mark.slow
def test_a_compiled_training_is_the_eager_one_up_to_rounding(shards: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, shards, validation={"every": 0}, samples={"count": 0})
    eps = "--model.optimizer.eps=1e-4"
    assert train(recipe, tmp_path / "eager", eps) == [0]
    assert train(recipe, tmp_path / "compiled", eps, "--compile=true", seconds=500) == [0]
    assert largest_difference(tmp_path / "eager", tmp_path / "compiled") < 1e-4
