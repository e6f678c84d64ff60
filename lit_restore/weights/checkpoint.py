"""What a checkpoint folder holds: tensors in safetensors files, the rest in JSON.

```
step-000000064000/
  network.safetensors     state-dict name → tensor
  ema.safetensors         profile/name → tensor
  optimizer.safetensors   parameter name/state name → tensor
  state.json              samples_seen, task, network name and options, config, fingerprints …
  manifest.json COMPLETE  see io.folder
```
Everything is keyed by name, nothing by rank or order, so that a checkpoint does not depend on how
many processes wrote it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_restore.errors import UserError
from lit_restore.io import folder, fs, tensors
from lit_restore.io.fs import HashingFile

FORMAT = 1
STEP_FOLDER = re.compile(r"step-\d{12}")
_MAX_STATE = 16 << 20


@dataclass
class Checkpoint:
    """The content of one checkpoint, on the CPU or on its way there."""

    network: dict[str, Tensor]
    averages: dict[str, dict[str, Tensor]]
    """Profile → state dict."""
    optimizer: dict[str, Tensor]
    """`parameter/state` → tensor."""
    state: dict[str, Any] = field(default_factory=dict)
    """What state.json holds; always with samples_seen, task and network."""


def step_folder(checkpoints: Path, samples_seen: int) -> Path:
    """The folder of the checkpoint at `samples_seen`."""
    return checkpoints / f"step-{samples_seen:012d}"


def samples_of(checkpoint: Path) -> int:
    """`samples_seen` from a checkpoint folder's name."""
    return int(checkpoint.name.removeprefix("step-"))


def write_checkpoint(target: Path, checkpoint: Checkpoint) -> folder.Manifest:
    """Write and publish a checkpoint folder: all of it, or nothing.

    Raises:
        OSError: the disk refused; nothing is left behind.
    """
    flat = {
        f"{profile}/{name}": tensor
        for profile, state in checkpoint.averages.items()
        for name, tensor in state.items()
    }
    state = {"format": FORMAT, **checkpoint.state}
    draft = folder.Draft.begin(target)
    try:
        for name, group in (
            ("network", checkpoint.network),
            ("ema", flat),
            ("optimizer", checkpoint.optimizer),
        ):
            draft.write(f"{name}.safetensors", _writer(group))
        draft.write("state.json", json.dumps(state, indent=1, sort_keys=True) + "\n")
        return draft.publish()
    except BaseException:
        draft.abandon()
        raise


def _writer(group: Mapping[str, Tensor]) -> Callable[[HashingFile], None]:
    return lambda file: tensors.save_tensors(file, group, {})


def read_state(checkpoint: Path) -> dict[str, Any]:
    """`state.json` of a checkpoint folder.

    Raises:
        UserError: unreadable, or of a newer format.
    """
    path = checkpoint / "state.json"
    try:
        state: dict[str, Any] = json.loads(fs.read_text(path, limit=_MAX_STATE))
        newer = state["format"] > FORMAT
        int(state["samples_seen"])
    except (ValueError, KeyError, TypeError):
        raise UserError("is not the state of a checkpoint", where=path) from None
    if newer:
        raise UserError("was written by a newer lit_restore; upgrade to read it", where=path)
    return state


def read_checkpoint(checkpoint: Path) -> Checkpoint:
    """Everything in a (verified) checkpoint folder, on the CPU.

    Raises:
        UserError: a file is unreadable.
    """
    averages: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.load_tensors(checkpoint / "ema.safetensors").items():
        profile, _, key = name.partition("/")
        averages.setdefault(profile, {})[key] = tensor
    return Checkpoint(
        network=tensors.load_tensors(checkpoint / "network.safetensors"),
        averages=averages,
        optimizer=tensors.load_tensors(checkpoint / "optimizer.safetensors"),
        state=read_state(checkpoint),
    )


def optimizer_tensors(
    optimizer: torch.optim.Optimizer, names: Mapping[Tensor, str]
) -> dict[str, Tensor]:
    """The optimiser's state keyed by parameter name."""
    return {
        f"{names[parameter]}/{key}": value
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
        if isinstance(value, Tensor)
    }


def _like(tensor: Tensor, parameter: Tensor) -> Tensor:
    """State of a parameter's shape gets its device and strides; counters stay as they are."""
    if tensor.shape != parameter.shape or tensor.ndim == 0:
        return tensor.clone()
    return torch.empty_like(parameter, dtype=tensor.dtype).copy_(tensor)


@torch.no_grad()
def load_optimizer(
    optimizer: torch.optim.Optimizer,
    names: Mapping[Tensor, str],
    stored: Mapping[str, Tensor],
    *,
    where: Path,
) -> None:
    """Put stored state back, each tensor on its parameter's device (counters where they were).

    Raises:
        UserError: the state belongs to other parameters.
    """
    state: dict[str, dict[str, Tensor]] = {}
    for name, tensor in stored.items():
        owner, _, key = name.rpartition("/")
        state.setdefault(owner, {})[key] = tensor
    unknown = sorted(set(state) - set(names.values()))
    if unknown:
        raise UserError(f"holds the state of {unknown[0]}, which is not trained here", where=where)
    for parameter, name in names.items():
        optimizer.state[parameter] = {
            key: _like(tensor, parameter) for key, tensor in state.get(name, {}).items()
        }
