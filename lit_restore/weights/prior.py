"""A prior from a file: a trained backbone, and how its output is to be read.

The interpolant and the prediction stand in the configuration that checkpoints and exported files
carry; where it leaves them out they are what `FlowGeneration` takes.
"""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import cast

from lit_restore.diffusion import PREDICTIONS, FlowPrior, Guidance, interpolant_named
from lit_restore.diffusion.predictions import Prediction
from lit_restore.errors import UserError, require_choice
from lit_restore.io.wording import shown
from lit_restore.networks import BACKBONES
from lit_restore.networks.base import JSONValue
from lit_restore.weights.loading import LoadedNetwork, load_network

TASK = "generation"
INTERPOLANT, PREDICTION = "linear", "velocity"
"""The defaults of `lit_restore.training.FlowGeneration`."""

_COMMANDS = {"denoiser": "; use `lit-restore denoise`"}


def load_prior(
    path: str | PathLike[str], profile: str | None = None, guidance: Guidance | None = None
) -> tuple[FlowPrior, LoadedNetwork]:
    """The prior in an exported file, a checkpoint folder, or a run's newest checkpoint.

    Args:
        path: as `load_network` takes it.
        profile: which average of the weights to take; by default the first.
        guidance: classifier-free guidance; none for the conditional model alone.

    Returns:
        The prior on the CPU, and its network with what is known about it.

    Raises:
        UserError: as `load_network`; it was trained for something else, its configuration is
            damaged, or guidance is asked of a network that cannot do without labels.
    """
    loaded = load_network(path, profile=profile)
    return prior_of(loaded, guidance), loaded


def prior_of(loaded: LoadedNetwork, guidance: Guidance | None = None) -> FlowPrior:
    """A loaded network as a prior; see `load_prior`."""
    _check_task(loaded)
    config = model_config(loaded)
    where = f"{loaded.source}: model"
    classes = class_count(loaded)
    if guidance is not None:
        _check_guidance(classes, config, loaded.source)
    interpolant = _word(config, "interpolant", INTERPOLANT, where)
    prediction = _word(config, "prediction", PREDICTION, where)
    require_choice(prediction, PREDICTIONS, where=f"{where}.prediction")
    return FlowPrior(
        loaded.net,
        interpolant_named(interpolant, where=f"{where}.interpolant"),
        cast("Prediction", prediction),
        guidance=guidance,
        null_label=classes or None,
    )


def class_count(loaded: LoadedNetwork) -> int:
    """Classes of a backbone, 0 for none; the label of this number stands for "no label"."""
    classes = loaded.net.options["classes"]
    assert isinstance(classes, int)
    return classes


def data_shape(loaded: LoadedNetwork) -> tuple[int, int, int]:
    """(C, H, W) of what a backbone takes."""
    channels, size = loaded.net.options["channels"], loaded.net.options["size"]
    height, width = size if isinstance(size, list) else (size, size)
    assert isinstance(channels, int)
    assert isinstance(height, int)
    assert isinstance(width, int)
    return channels, height, width


def model_config(loaded: LoadedNetwork) -> dict[str, JSONValue]:
    """The recorded options of the training module; empty where there are none.

    Raises:
        UserError: what is recorded is no such thing.
    """
    tree: JSONValue = loaded.info
    for key in ("config", "model"):
        if not isinstance(tree, dict):
            break
        tree = tree.get(key) or {}
    if not isinstance(tree, dict):
        raise UserError("its configuration is damaged", where=loaded.source)
    return tree


def _check_task(loaded: LoadedNetwork) -> None:
    backbone = loaded.net.kind in BACKBONES
    task = loaded.info.get("task") or (TASK if backbone else "denoiser")
    if task != TASK:
        command = _COMMANDS.get(str(task), "")
        raise UserError(
            f"was trained for {shown(str(task))}, not for {TASK}{command}", where=loaded.source
        )
    if not backbone:
        kinds = ", ".join(BACKBONES)
        raise UserError(f"holds a {loaded.net.kind}, not one of {kinds}", where=loaded.source)


def _check_guidance(classes: int, config: dict[str, JSONValue], source: Path) -> None:
    if not classes:
        raise UserError("has no classes, so there is nothing to guide", where=source)
    if config.get("label_dropout") == 0:
        raise UserError("was trained with label_dropout 0, which guidance needs", where=source)


def _word(config: dict[str, JSONValue], key: str, default: str, where: str) -> str:
    value = config.get(key)
    if value is None:
        return default
    if not isinstance(value, str):
        raise UserError("is damaged: a name is expected", where=f"{where}.{key}")
    return value
