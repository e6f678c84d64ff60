"""A config may name layers, optimisers, ours and some of Lightning; no other import happens."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import jsonargparse
import lightning.pytorch as lightning
import pytest
import torch
from jsonargparse._common import parsing_settings

from lit_restore.cli.gate import (
    PACKAGES,
    check_class_paths,
    close_gate,
    is_allowed,
    lightning_classes,
    open_gate,
)
from lit_restore.errors import UserError

REFUSED = (
    "os.system",
    "posix.system",
    "subprocess.Popen",
    "builtins.exec",
    "functools.partial",
    "evilpkg.K",
    "torch.os.system",
    "torch.hub.load",
    "torch.jit.load",
    "torch.nn.modules.module.os.system",
    "torch.optim.optimizer.functools.partial",
    "lightning.pytorch.callbacks.LambdaCallback",
    "lightning.pytorch.callbacks.lambda_function.LambdaCallback",
    "lightning.pytorch.callbacks",
    "pytorch_lightning.callbacks.ModelSummary",
    "lit_restore.io.fs.HashingFile",
    "lit_restore.io.images.os.system",
    "lit_restore.networks.os.system",
    "jsonargparse.set_parsing_settings",
    "torch.nn..ReLU",
    "torch.nn.ReLU.__init__",
    "../torch.nn.ReLU",
    "",
)
OUR_WALK_ALONE = {"torch.nn.ReLU.__init__"}
"""What the parser lets through where it expects any callable: it checks beginnings only."""
ALLOWED = (
    "torch.optim.AdamW",
    "torch.optim.adamw.AdamW",
    "torch.optim.lr_scheduler.CosineAnnealingLR",
    "torch.nn.GELU",
    "torch.nn.modules.activation.GELU",
    "lightning.pytorch.callbacks.ModelSummary",
    "lightning.pytorch.callbacks.model_summary.ModelSummary",
    "lightning.pytorch.profilers.SimpleProfiler",
    "lightning.pytorch.strategies.DDPStrategy",
    "lit_restore.networks.UNet",
    "lit_restore.networks.unet.UNet",
    "UNet",
)


@pytest.fixture
def gate() -> Iterator[None]:
    """The gate closed for one test; the parser's settings are of the whole process."""
    before = dict(parsing_settings)
    close_gate()
    yield
    parsing_settings.clear()
    parsing_settings.update(before)


@pytest.fixture
def evilpkg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package whose import leaves a canary."""
    canary = tmp_path / "canary"
    folder = tmp_path / "evilpkg"
    folder.mkdir()
    (folder / "__init__.py").write_text(
        f"open({str(canary)!r}, 'w').close()\n"
        "import torch\nclass K(torch.nn.ReLU): pass\ndef f() -> torch.nn.Module: ...\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield canary
    sys.modules.pop("evilpkg", None)


def parser(kind: object) -> jsonargparse.ArgumentParser:
    found = jsonargparse.ArgumentParser(exit_on_error=False)
    found.add_argument("--x", type=kind)
    return found


# Our own walk over the tree -----------------------------------------------------------------------


@pytest.mark.parametrize("name", REFUSED)
def test_config_that_names_a_stranger_is_refused_by_name(name: str) -> None:
    with pytest.raises(UserError) as caught:
        check_class_paths({"trainer": {"callbacks": [{"class_path": name}]}}, "c.yaml")
    line = f"class_path {name} is not allowed; --trust_config would run it"
    assert (caught.value.message, caught.value.where) == (line, "c.yaml")


@pytest.mark.parametrize("name", ALLOWED)
def test_config_that_names_what_is_listed_passes(name: str) -> None:
    assert is_allowed(name)
    check_class_paths({"trainer": {"callbacks": [{"class_path": name}]}}, "c.yaml")


@pytest.mark.parametrize(
    "wrap",
    [
        lambda x: x,
        lambda x: {"a": [{"b": (x,)}]},
        lambda x: {"net": {"class_path": "UNet", "init_args": {"norm": x}}},
        lambda x: {f"net.{key}": value for key, value in x.items()},
    ],
)
def test_class_path_is_found_at_any_depth(wrap: Callable[[dict[str, str]], object]) -> None:
    with pytest.raises(UserError, match=r"class_path os\.system is not allowed"):
        check_class_paths(wrap({"class_path": "os.system"}), "c.yaml")
    check_class_paths(wrap({"class_path": "torch.nn.ReLU"}), "c.yaml")


def test_class_path_must_be_a_name() -> None:
    with pytest.raises(UserError, match="class_path expects a name"):
        check_class_paths({"class_path": ["os.system"]}, "c.yaml")


def test_checkpoint_has_its_own_line() -> None:
    with pytest.raises(UserError) as caught:
        check_class_paths({"class_path": "evilpkg.K"}, "step-1", from_checkpoint=True)
    assert str(caught.value) == "step-1: config names evilpkg.K, not allowed"


def test_walk_imports_nothing(evilpkg: Path) -> None:
    with pytest.raises(UserError):
        check_class_paths({"class_path": "evilpkg.K"}, "c.yaml")
    assert not evilpkg.exists()


# The argument parser behind it --------------------------------------------------------------------

KINDS = {
    "class": torch.nn.Module,
    "callback": lightning.Callback,
    "callable": Callable[[str], int],
    "type": type[torch.nn.Module],
}


@pytest.mark.usefixtures("gate")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", sorted(set(REFUSED) - OUR_WALK_ALONE))
def test_closed_gate_stops_the_parser_too(name: str, kind: str, evilpkg: Path) -> None:
    for value in (name, {"class_path": name}):
        with pytest.raises((jsonargparse.ArgumentError, ValueError, AttributeError)):
            parser(KINDS[kind]).parse_object({"x": value})
    assert not evilpkg.exists()


@pytest.mark.usefixtures("gate")
def test_short_name_does_not_reach_a_refused_class() -> None:
    with pytest.raises(jsonargparse.ArgumentError, match="not allowed"):
        parser(lightning.Callback).parse_object({"x": {"class_path": "LambdaCallback"}})
    found = parser(lightning.Callback).parse_object({"x": {"class_path": "ModelSummary"}})
    assert found.x.class_path == "lightning.pytorch.callbacks.ModelSummary"


@pytest.mark.usefixtures("gate")
@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (torch.nn.Module, "torch.nn.GELU"),
        (torch.nn.Module, "lit_restore.networks.UNet"),
        (lightning.Callback, "lightning.pytorch.callbacks.DeviceStatsMonitor"),
        (torch.optim.Optimizer, "torch.optim.AdamW"),
    ],
)
def test_closed_gate_lets_ordinary_classes_through(kind: type, name: str) -> None:
    value = {"class_path": name}
    if kind is torch.optim.Optimizer:
        value["init_args"] = {"params": [torch.zeros(1, requires_grad=True)]}
        kind = Callable[[list], torch.optim.Optimizer]
        value.pop("init_args")
    assert parser(kind).parse_object({"x": value}).x.class_path.endswith(name.rpartition(".")[2])


@pytest.mark.usefixtures("gate")
@pytest.mark.parametrize("name", sorted(lightning_classes()))
def test_every_listed_class_of_lightning_exists_and_passes_the_parser(name: str) -> None:
    module, _, attribute = name.rpartition(".")
    found = getattr(importlib.import_module(module), attribute)
    assert f"{found.__module__}.{found.__qualname__}" in set(lightning_classes())
    base = next(
        kind
        for kind in (
            lightning.Callback,
            lightning.loggers.Logger,
            lightning.profilers.Profiler,
            lightning.strategies.Strategy,
        )
        if issubclass(found, kind)
    )
    assert parser(type[base]).parse_object({"x": name}).x is found


def test_without_the_gate_the_parser_imports_the_stranger(evilpkg: Path) -> None:
    """The negative control of all of the above."""
    parser(torch.nn.Module).parse_object({"x": {"class_path": "evilpkg.K"}})
    assert evilpkg.exists()


@pytest.mark.usefixtures("gate")
def test_closing_twice_changes_nothing() -> None:
    before = dict(parsing_settings["import_path_verdicts"])
    close_gate()
    assert parsing_settings["import_path_verdicts"] == before
    assert before["*"] is False


def test_open_gate_is_announced(capsys: pytest.CaptureFixture[str]) -> None:
    open_gate()
    assert "--trust_config" in capsys.readouterr().err


def test_no_listed_package_holds_files_commands_or_lambda_callbacks() -> None:
    assert not any(name.startswith(("lit_restore.io", "lit_restore.cli")) for name in PACKAGES)
    assert not any("LambdaCallback" in name for name in lightning_classes())
    assert not any(name.startswith("lightning") for name in PACKAGES)
