"""The options a user can set: a frozen list, and no type that would let a config run anything."""

from __future__ import annotations

import dataclasses
import inspect
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import lit_restore.cli.restore_cli  # noqa: F401  (loads all that options can name)
from lit_restore.callbacks.checkpoints import Checkpoints
from lit_restore.callbacks.ema import EMA
from lit_restore.callbacks.guards import Guards
from lit_restore.callbacks.metrics import Metrics
from lit_restore.callbacks.profile import Profile
from lit_restore.callbacks.samples import SampleGrid
from lit_restore.callbacks.trace import Trace
from lit_restore.callbacks.validation import Validation
from lit_restore.cli.run_options import WandbOptions
from lit_restore.data import ShardDataModule
from lit_restore.networks import NETWORKS
from lit_restore.training import TASKS

ROOT = Path(__file__).parents[2]
GROUPS = {
    "data": ShardDataModule,
    "ema": EMA,
    "checkpoint": Checkpoints,
    "validation": Validation,
    "metrics": Metrics,
    "samples": SampleGrid,
    "guard": Guards,
    "trace": Trace,
    "profile": Profile,
    "wandb": WandbOptions,
    **{f"model({name})": module for name, module in TASKS.items()},
}


def parameters(cls: type) -> dict[str, Any]:
    names = [n for n in inspect.signature(cls.__init__).parameters if n != "self"]
    hints = typing.get_type_hints(cls.__init__)
    return {name: hints[name] for name in names}


def options(cls: type, prefix: str) -> Iterator[tuple[str, Any]]:
    for name, hint in parameters(cls).items():
        yield f"{prefix}.{name}", hint
        for part in (hint, *typing.get_args(hint)):
            if dataclasses.is_dataclass(part) and isinstance(part, type):
                yield from options(part, f"{prefix}.{name}")


def surface() -> dict[str, Any]:
    found = dict(pair for key, cls in GROUPS.items() for pair in options(cls, key))
    for name, cls in NETWORKS.items():
        found |= dict(options(cls, f"net({name})"))
    return found


def test_the_public_options_are_the_frozen_list() -> None:
    # A new option is a promise: add it to the list in the same change.
    frozen = (Path(__file__).parent / "options.txt").read_text().split()
    assert sorted(surface()) == frozen


def test_no_option_takes_a_type_that_would_run_what_a_config_names() -> None:
    for key, hint in surface().items():
        loose = {hint, typing.get_origin(hint), *typing.get_args(hint)}
        assert not loose & {Any, object, Callable, typing.Callable, torch.nn.Module}, key


@pytest.mark.parametrize(
    "path", sorted((ROOT / "configs").rglob("*.yaml")), ids=lambda p: str(p.relative_to(ROOT))
)
def test_every_config_parses_and_names_only_known_options(
    path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from support_runs import run_ranks

    from lit_restore.cli.train import main

    presets = {"trainer", "degradation"}
    base = [] if not presets & set(path.parts) else ["-c", str(ROOT / "configs/quickstart.yaml")]
    argv = ["fit", *base, "-c", str(path), "--print_config"]
    output = path.name.replace(".yaml", ".log")
    assert run_ranks(lambda rank: main(argv), 1) == [0], output
    printed = yaml.safe_load(capfd.readouterr().out)
    assert printed["task"] in TASKS
