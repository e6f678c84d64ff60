"""Error lines name the full key and the mend, and a bug of ours keeps its traceback."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from conftest import encoded, picture, write_tar
from support_fork import run_ranks
from support_runs import train, write_recipe

import lit_restore.networks.unet
from lit_restore.callbacks.ema import EMA
from lit_restore.cli.keys import CALLBACKS, REFUSED_CALLBACKS
from lit_restore.cli.parser import one_line


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_tar(folder / "train-0.tar", [(f"{k}.png", encoded(picture(k))) for k in range(9)])
    return folder


def trainer(**options: Any) -> dict[str, Any]:
    return {"trainer": options}


def network(**options: Any) -> dict[str, Any]:
    return {"model": {"net": {"init_args": options}}}


Case = tuple[dict[str, Any], tuple[str, ...], list[str]]

CASES: dict[str, Case] = {
    # what Lightning refuses
    "accelerator": (trainer(accelerator="foo"), (), ["trainer: ", "foo", "cpu"]),
    "devices": (trainer(devices=-3), (), ["trainer: ", "devices"]),
    "profiler": (trainer(profiler="foo"), (), ["trainer: ", "profiler", "simple"]),
    # networks
    "widths": (network(widths=[8, -4]), (), ["model.net.widths: ", "positive integers", "-4"]),
    "no widths": (network(widths=None), (), ["model.net.widths: ", "list of positive", "None"]),
    "text for widths": (network(widths="many"), (), ["model.net.widths expects a list", "many"]),
    "depths": (network(depths=[1]), (), ["model.net.depths: ", "each of widths (2), got 1"]),
    "unshuffle": (network(unshuffle=0), (), ["model.net.unshuffle: ", "positive", "0"]),
    "grey": (network(channels=1), (), ["model.net.channels: ", "RGB", "3"]),
    "an option beside init_args": (
        {"model": {"net": {"depths": [1, 2]}}}, (),
        ["recipe.yaml", "model.net.depths belongs into model.net.init_args"],
    ),
    "short name in other letters": ({}, ("--model.net", "Unet"), ["model.net", "UNet?"]),
    "no network": ({"model": {"net": None}}, (), ["model.net is required"]),
    # averages
    "typo in a profile": (
        {"ema": {"profiles": {"ema": {"half_lif": 500}}}}, (),
        ["recipe.yaml", "ema.profiles.ema.half_lif is not", "mean ema.profiles.ema.half_life?"],
    ),
    "the same as an option": (
        {}, ("--ema.profiles.ema.half_lif=500",), ["did you mean ema.profiles.ema.half_life?"],
    ),
    "a profile that is a number": (
        {"ema": {"profiles": {"ema": 5}}}, (), ["ema.profiles.ema expects options", "got 5"],
    ),
    # choices
    "guard": (
        {"guard": {"on_nonfinite": "foo"}}, (),
        ["guard.on_nonfinite expects one of skip, stop, got foo"],
    ),
    "loss": ({"model": {"loss": "foo"}}, (), ["model.loss expects one of mse, l1, ", "got foo"]),
    "optimizer": (
        {"model": {"optimizer": {"name": "foo"}}}, (),
        ["model.optimizer.name expects one of adam, adamw, sgd, got foo"],
    ),
    "wandb": ({"wandb": {"mode": "foo"}}, (), ["wandb.mode expects one of auto, ", "got foo"]),
    # callbacks
    "a stranger as a text": (
        trainer(callbacks=["os.system"]), (), ["os.system is no callback", "{class_path: NAME"],
    ),
    "a callback that is a number": (trainer(callbacks=5), (), ["5 is no callback", "class_path"]),
    "a callback that is no callback": (
        trainer(callbacks=[{"class_path": "torch.nn.ReLU"}]), (),
        ["trainer.callbacks", "torch.nn.ReLU"],
    ),
    "no such callback": (trainer(callbacks=["ModelSumary"]), (), ["did you mean ModelSummary?"]),
    "a callback by the dot": (
        {}, ("--trainer.callbacks.class_path=Timer",), ["trainer.callbacks", "{class_path: NAME"],
    ),
    "a stranger on the command line": (
        {}, ('--trainer.callbacks=[{"class_path": "os.system"}]',), ["os.system is not allowed"],
    ),
    # null
    "null learning rate": (
        {"model": {"optimizer": {"lr": None}}}, (),
        ["model.optimizer.lr: cannot be null", "leave it out for 0.001"],
    ),
    "null choice": ({"guard": {"on_nonfinite": None}}, (), ["guard.on_nonfinite: cannot be null"]),
    "null devices": (trainer(devices=None), (), ["trainer.devices: cannot be null", "auto"]),
    # types
    "text for a number": (
        {"data": {"crop": "x"}}, (), ["data.crop expects an integer or null, got x"],
    ),
    "list for a number": ({"total_samples": [96]}, (), ["total_samples expects an integer"]),
    "number for a list": ({"model": {"val_sigmas": 0.1}}, (), ["model.val_sigmas expects a list"]),
    "number for options": ({}, ("--data", "5"), ["data expects options"]),
    "word of another alphabet": ({"data": {"tråin": 5}}, (), ["data.tråin", "data.train?"]),
    # the command line
    "no value": ({}, ("--data.crop",), ["data.crop is given without a value"]),
    "an empty value": ({}, ("--model.optimizer.lr=",), ["optimizer.lr expects", "got nothing"]),
    "one dash": ({}, ("-data.crop", "16"), ["-data.crop", "--key value"]),
    "wrong key where the config is printed": (
        {}, ("--print_config", "--data.crp=5"), ["data.crp is not an option", "data.crop?"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", list(CASES))
def test_the_line_names_the_key_and_the_mend(name: str, shards: Path, tmp_path: Path) -> None:
    over, options, words = CASES[name]
    recipe = write_recipe(tmp_path, shards, **over)
    codes = train(recipe, tmp_path / "run", *options, output=tmp_path / "log")
    assert_refused(codes, tmp_path / "log.0", words)


def assert_refused(codes: list[int], log: Path, words: list[str]) -> None:
    text = log.read_text()
    errors = [line for line in text.splitlines() if line.startswith("error: ")]
    assert (codes, len(errors)) == ([2], 1), text
    assert "Traceback" not in text
    missing = [word for word in words if word not in errors[0]]
    assert not missing, errors[0]


@pytest.mark.parametrize("name", sorted(REFUSED_CALLBACKS))
def test_a_callback_that_cannot_work_is_refused_with_the_mend(
    name: str, shards: Path, tmp_path: Path
) -> None:
    recipe = write_recipe(tmp_path, shards, **trainer(callbacks=[name]))
    codes = train(recipe, tmp_path / "run", output=tmp_path / "log")
    words = [f"trainer.callbacks: {name} does not work here: {REFUSED_CALLBACKS[name]}"]
    assert_refused(codes, tmp_path / "log.0", words)


@pytest.mark.parametrize("name", CALLBACKS)
def test_the_other_callbacks_work_by_their_short_name(
    name: str, shards: Path, tmp_path: Path
) -> None:
    recipe = write_recipe(tmp_path, shards, **trainer(callbacks=[name]))
    assert train(recipe, tmp_path / "run") == [0]


def broken_stack(width: int, depth: int) -> None:
    raise TypeError("a bug")


def broken_average(self: EMA, profiles: dict[str, Any] | None = None) -> None:
    raise TypeError("a bug")


@pytest.mark.parametrize(
    ("owner", "name", "broken"),
    [
        (lit_restore.networks.unet, "_stack", broken_stack),
        (EMA, "__init__", broken_average),
    ],
)
def test_a_bug_in_a_constructor_keeps_its_traceback(
    owner: Any,
    name: str,
    broken: Any,
    shards: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(owner, name, broken)
    recipe = write_recipe(tmp_path, shards)
    assert train(recipe, tmp_path / "run", output=tmp_path / "log") == [1]
    text = (tmp_path / "log.0").read_text()
    assert "Traceback" in text
    assert "TypeError: a bug" in text


def test_lightnings_variables_of_the_environment_are_refused(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PL_TRAINER_MAX_STEPS", "2")
    codes = train(write_recipe(tmp_path, shards), tmp_path / "run", output=tmp_path / "log")
    assert_refused(codes, tmp_path / "log.0", ["PL_TRAINER_MAX_STEPS: unset it"])


def test_a_config_before_the_command_is_told_where_to_go(shards: Path, tmp_path: Path) -> None:
    from lit_restore.cli.train import main

    recipe = write_recipe(tmp_path, shards)
    codes = run_ranks(lambda rank: main(["-c", str(recipe), "fit"]), 1, output=tmp_path / "log")
    assert_refused(codes, tmp_path / "log.0", ["put -c and all options behind fit"])


@pytest.mark.parametrize(
    ("message", "line"),
    [
        (
            "Parser key \"a.b\":\n  Expected a typing.Literal['x', 'y']. Got value: z",
            "a.b expects one of x, y, got z",
        ),
        (
            'Parser key "a.net":\n  widths expects an integer, got [8]',
            "a.net.widths expects an integer, got [8]",
        ),
        (
            "the following arguments are required: fit.model.net",
            "model.net is required; give it in a config (-c) or as an option",
        ),
        (
            "Parser key \"a\":\n  Importing 'os.system' is not allowed, denied by",
            "a: os.system is not allowed; --trust_config would run it",
        ),
        ("something else entirely", "something else entirely"),
    ],
)
def test_each_form_of_a_parser_message_has_its_line(message: str, line: str) -> None:
    assert one_line(message) == line
