"""What a checkpoint folder holds: tensors in safetensors files, the rest in JSON.

```
step-000000064000/
  network.safetensors     state-dict name → tensor
  ema.safetensors         profile/name → tensor
  optimizer.safetensors   parameter name/state name → tensor
  state.json              samples_seen, task, network name and options, config, fingerprints …
  manifest.json COMPLETE  see io.folder
```
Where tensors are spread over ranks (FSDP2) each rank writes its own part, `network-r3.safetensors`,
and index.json says of which tensor which file holds which box (see weights.stored).
Everything is keyed by name, nothing by rank or order, so that a checkpoint does not depend on how
many processes wrote it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

from lit_restore.errors import UserError
from lit_restore.io import folder, fs, tensors
from lit_restore.io.fs import HashingFile
from lit_restore.weights.pieces import Piece, box_of, is_spread, local_part, own_pieces
from lit_restore.weights.stored import INDEX, StoredGroup, open_groups

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


@dataclass
class Part:
    """What one rank writes of a checkpoint."""

    rank: int
    sharded: bool
    """Whether any tensor is spread over ranks: then files are one a rank, and there is an index."""
    groups: dict[str, dict[str, Piece]]
    """Group → name → piece."""


def part_of(checkpoint: Checkpoint, *, rank: int = 0) -> Part:
    """The part of one rank; its tensors share memory with the checkpoint's."""
    groups = {
        "network": checkpoint.network,
        "ema": {
            f"{profile}/{name}": tensor
            for profile, state in checkpoint.averages.items()
            for name, tensor in state.items()
        },
        "optimizer": checkpoint.optimizer,
    }
    sharded = any(is_spread(t) for group in groups.values() for t in group.values())
    pieces = {name: own_pieces(group, rank=rank) for name, group in groups.items()}
    return Part(rank, sharded, pieces)


IndexRow: TypeAlias = "tuple[str, str, dict[str, Any], dict[str, Any]]"
"""Group, tensor, what is true of the whole tensor (shape, dtype), one piece of it."""


def write_part(draft: folder.Draft, part: Part) -> list[IndexRow]:
    """Write one rank's files into a draft; what the index has to say of them.

    Raises:
        OSError: the disk refused.
    """
    rows: list[IndexRow] = []
    for group, pieces in part.groups.items():
        if not pieces and (part.sharded or part.rank):
            continue
        file = f"{group}-r{part.rank}.safetensors" if part.sharded else f"{group}.safetensors"
        draft.write(file, _writer({name: piece.tensor for name, piece in pieces.items()}))
        for name, piece in pieces.items():
            whole = {"shape": list(piece.whole), "dtype": tensors.CODES[piece.tensor.dtype]}
            shape = list(piece.tensor.shape)
            place = {"file": file, "offset": list(piece.offset), "shape": shape}
            rows.append((group, name, whole, place))
    return rows


def publish(
    draft: folder.Draft,
    state: Mapping[str, Any],
    entries: Sequence[folder.FileEntry],
    rows: Sequence[IndexRow],
    *,
    sharded: bool,
) -> folder.Manifest:
    """Complete a draft that all ranks have written, and give it its name; on rank 0.

    Args:
        draft: rank 0's.
        state: what state.json holds.
        entries: the files of the other ranks.
        rows: of all ranks' `write_part`.
        sharded: whether an index is needed.

    Raises:
        OSError: not saved.
    """
    if sharded:
        index: dict[str, dict[str, Any]] = {"network": {}, "ema": {}, "optimizer": {}}
        for group, name, whole, place in rows:
            index[group].setdefault(name, {**whole, "pieces": []})["pieces"].append(place)
        draft.write(INDEX, json.dumps(index, sort_keys=True) + "\n")
    text = json.dumps({"format": FORMAT, **state}, indent=1, sort_keys=True) + "\n"
    draft.write("state.json", text)
    return draft.publish([*draft.entries, *entries])


def write_checkpoint(target: Path, checkpoint: Checkpoint) -> folder.Manifest:
    """Write and publish a checkpoint of one process: all of it, or nothing.

    Raises:
        OSError: the disk refused; nothing is left behind.
    """
    part = part_of(checkpoint)
    draft = folder.Draft.begin(target)
    try:
        rows = write_part(draft, part)
        return publish(draft, checkpoint.state, (), rows, sharded=part.sharded)
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


@dataclass
class OpenCheckpoint:
    """A checkpoint folder whose tensors are read as they are asked for."""

    network: StoredGroup
    averages: dict[str, StoredGroup]
    """Profile → tensors."""
    optimizer: StoredGroup
    state: dict[str, Any]


def open_checkpoint(checkpoint: Path) -> OpenCheckpoint:
    """What a (verified) checkpoint folder holds, written by any number of ranks.

    Raises:
        UserError: a file is unreadable.
    """
    network, averages, optimizer = open_groups(checkpoint, "network", "ema", "optimizer")
    profiles = sorted({name.partition("/")[0] for name in averages})
    return OpenCheckpoint(
        network=network,
        averages={profile: averages.below(f"{profile}/") for profile in profiles},
        optimizer=optimizer,
        state=read_state(checkpoint),
    )


def read_checkpoint(checkpoint: Path) -> Checkpoint:
    """Everything in a (verified) checkpoint folder, whole, on the CPU.

    Raises:
        UserError: a file is unreadable.
    """
    found = open_checkpoint(checkpoint)
    return Checkpoint(
        network=found.network.whole(),
        averages={profile: group.whole() for profile, group in found.averages.items()},
        optimizer=found.optimizer.whole(),
        state=found.state,
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


@torch.no_grad()
def _like(stored: StoredGroup, key: str, parameter: Tensor) -> Tensor:
    """State of a parameter's shape gets its device, strides and box; counters stay as they are."""
    shape = stored.shape(key)
    if shape != tuple(parameter.shape) or not shape:
        return stored.read(key)
    part = stored.read(key, box_of(parameter))
    result = torch.empty_like(parameter, dtype=part.dtype)
    local_part(result).copy_(part)
    return result


@torch.no_grad()
def load_optimizer(
    optimizer: torch.optim.Optimizer,
    names: Mapping[Tensor, str],
    stored: StoredGroup,
    *,
    where: Path,
) -> None:
    """Put stored state back, each tensor on its parameter's device (counters where they were).

    Raises:
        UserError: the state belongs to other parameters.
    """
    state: dict[str, dict[str, str]] = {}
    for name in stored:
        owner, _, key = name.rpartition("/")
        state.setdefault(owner, {})[key] = name
    unknown = sorted(set(state) - set(names.values()))
    if unknown:
        raise UserError(f"holds the state of {unknown[0]}, which is not trained here", where=where)
    for parameter, name in names.items():
        optimizer.state[parameter] = {
            key: _like(stored, full, parameter) for key, full in state.get(name, {}).items()
        }
