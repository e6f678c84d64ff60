"""One safetensors file that holds a network and all that is needed to rebuild it.

The header's metadata has one entry, "lit_restore", a JSON object: `format`, `network` (short name
and options), and what the writer says about the weights (task, profile, samples_seen, config …).
A reader builds only networks of `NETWORKS`, by short name: a file never names code.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from os import PathLike
from pathlib import Path

import torch
from torch import Tensor, nn

from lit_restore.errors import UserError
from lit_restore.io import fs, tensors
from lit_restore.io.wording import shown
from lit_restore.networks import NETWORKS, Network
from lit_restore.networks.base import JSONValue
from lit_restore.weights.transfer import load_exactly

FORMAT = 1
_ENTRY = "lit_restore"
_LARGEST_OPTION = 1 << 16


def save_exported(
    path: str | PathLike[str], net: Network, *, info: Mapping[str, JSONValue]
) -> None:
    """Write a network and its description, wholly or not at all.

    Args:
        path: the file to write or replace.
        net: a network of `NETWORKS`.
        info: what else to tell about the weights (task, profile, samples_seen, config …).

    Raises:
        OSError: the disk refused; an older file is untouched.
    """
    about = {**info, "format": FORMAT, "network": describe(net)}
    text = json.dumps(about, sort_keys=True, ensure_ascii=False, allow_nan=False)
    content = io.BytesIO()
    tensors.save_tensors(content, net.state_dict(), {_ENTRY: text})
    fs.write_atomic(path, content.getvalue())


def describe(net: Network) -> dict[str, JSONValue]:
    """Short name and options of a network, as exports and checkpoints hold them."""
    assert net.kind in NETWORKS, f"{net.kind} is not listed in NETWORKS"
    return {"name": net.kind, "options": dict(net.options)}


def load_exported(path: str | PathLike[str]) -> Network:
    """The network of an exported file, in float32 on the CPU, in evaluation mode.

    Args:
        path: a file that `save_exported` (`lit-restore export`, `lit-restore convert`) wrote.

    Raises:
        UserError: the file is damaged, not exported, of an unknown network, its tensors are not
            those of the network it names, or a value is not finite.
    """
    description = read_info(path).get("network")
    net = rebuild(description, stored_shapes(path), where=path)
    fill(net, tensors.load_tensors(path), where=path)
    return net.eval()


def read_info(path: str | PathLike[str]) -> dict[str, JSONValue]:
    """The description in an exported file, without its tensors.

    Raises:
        UserError: not an exported file, or written by a newer version.
    """
    text = tensors.read_metadata(path).get(_ENTRY)
    if text is None:
        raise UserError(
            "was not exported by lit_restore; see `lit-restore export` and `lit-restore convert`",
            where=path,
        )
    try:
        info = json.loads(text)
        newer = info["format"] > FORMAT
    except (ValueError, KeyError, TypeError, RecursionError):
        raise UserError("its description is damaged; export it again", where=path) from None
    if newer:
        raise UserError("was written by a newer lit_restore; upgrade to read it", where=path)
    assert isinstance(info, dict)
    return info


def stored_shapes(path: str | PathLike[str]) -> dict[str, tuple[int, ...]]:
    """Name → shape of a safetensors file's tensors, from its header."""
    return {entry.name: entry.shape for entry in tensors.read_header(path).entries}


def rebuild(
    description: JSONValue,
    shapes: Mapping[str, tuple[int, ...]],
    *,
    where: str | PathLike[str],
) -> Network:
    """A network from its short name and options, its weights as they are initialised.

    Args:
        description: ``{"name": short name, "options": {…}}``.
        shapes: of the tensors to be loaded; compared before anything is allocated.
        where: the file, for error lines.

    Raises:
        UserError: the name is not in `NETWORKS`, the options do not fit, or the shapes differ.
    """
    kind, options = _parse(description, where)
    try:
        with torch.device("meta"):
            plan = kind(**options)
    except UserError as error:
        raise UserError(f"its network cannot be built: {error}", where=where) from None
    except Exception:
        # Options come from a stranger's file; whatever they break is the file's fault.
        raise UserError(f"its options are not those of {kind.__name__}", where=where) from None
    blanks = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    load_exactly(plan, blanks, where=Path(where))
    return kind(**options)


def fill(net: nn.Module, stored: Mapping[str, Tensor], *, where: str | PathLike[str]) -> None:
    """Copy a whole state dict into `net`, all of it finite.

    Raises:
        UserError: tensors are missing or of other shapes, or hold infinities or NaNs.
    """
    for name, tensor in stored.items():
        bad = int((~tensor.isfinite()).sum())
        if bad:
            plural = "value" if bad == 1 else "values"
            raise UserError(f"{shown(name)} holds {bad} non-finite {plural}", where=where)
    load_exactly(net, stored, where=Path(where))


def _parse(
    description: JSONValue, where: str | PathLike[str]
) -> tuple[type[Network], dict[str, JSONValue]]:
    if not isinstance(description, dict):
        raise UserError("does not say which network it holds", where=where)
    name, options = description.get("name"), description.get("options")
    if not isinstance(name, str) or name not in NETWORKS:
        known = ", ".join(NETWORKS)
        raise UserError(f"holds network {shown(str(name))}; known are {known}", where=where)
    if not isinstance(options, dict) or not _modest(options):
        raise UserError(f"its options are not those of {name}", where=where)
    return NETWORKS[name], options


def _modest(value: JSONValue) -> bool:
    """No number so large that building even an empty network of that size would take minutes."""
    if isinstance(value, dict):
        return all(_modest(item) for item in value.values())
    if isinstance(value, list):
        return len(value) <= 1000 and all(_modest(item) for item in value)
    return not isinstance(value, (int, float)) or abs(value) <= _LARGEST_OPTION
