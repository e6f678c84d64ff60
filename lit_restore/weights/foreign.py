"""Other projects' weights in our networks: names and layouts translated, nothing else."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import cast, get_args

import torch
from torch import Tensor

from lit_restore.errors import UserError
from lit_restore.io.torch_files import load_foreign_weights
from lit_restore.networks import FFDNet, Network
from lit_restore.networks.base import JSONValue
from lit_restore.networks.bsrt import bsrt_from_official
from lit_restore.weights.dimsum import Which, dimsum_from, read_official
from lit_restore.weights.exported import fill

_COLUMN_MAJOR = (0, 2, 1, 3)
_LAYER = re.compile(r"conv(\d+)\.(weight|bias)")


def load_foreign(
    kind: str, path: str | PathLike[str], member: str | None = None, which: str | None = None
) -> Network:
    """A network with another project's weights, in evaluation mode.

    Args:
        kind: a name of `ADAPTERS`.
        path: the file, or a tar that holds it.
        member: the file's name inside the tar.
        which: of several sets of weights in the file, one of the kind's `sets`.

    Raises:
        UserError: the file is unreadable, not of that kind, or holds no such set.
    """
    where = str(path) if member is None else f"{path}:{member}"
    return ADAPTERS[kind].load(path, member, which, where).eval()


def _load_ffdnet(
    path: str | PathLike[str], member: str | None, which: str | None, where: str
) -> Network:
    assert which is None, which
    net, state = adapt_ffdnet(load_foreign_weights(path, member), where)
    fill(net, state, where=where)
    return net


def _load_dimsum(
    path: str | PathLike[str], member: str | None, which: str | None, where: str
) -> Network:
    stored = read_official(path, member, which=cast("Which | None", which))
    return dimsum_from(stored, where=where)


def _load_bsrt(
    path: str | PathLike[str], member: str | None, which: str | None, where: str
) -> Network:
    assert which is None, which
    # Of a training's file the "net" is meant, as its own loader takes it.
    stored = load_foreign_weights(path, member, prefer=("params", "state_dict", "net", "model"))
    return bsrt_from_official(stored, where=where)


def adapt_ffdnet(stored: dict[str, Tensor], where: str) -> tuple[FFDNet, dict[str, Tensor]]:
    """FFDNet's published weights, ``conv0.weight`` … ``conv11.bias`` (gray: … ``conv14.bias``).

    The four sub-images of a channel are numbered down the columns there and along the rows in
    PyTorch's pixel-unshuffle: the second and the third change places, on the way in and out.

    Args:
        stored: the file's tensors.
        where: the file, for error lines.

    Returns:
        A network of the file's size, and the state dict for it.

    Raises:
        UserError: these are not the tensors of an FFDNet.
    """
    found = {name: match for name in stored if (match := _LAYER.fullmatch(name))}
    depth = 1 + max((int(match[1]) for match in found.values()), default=0)
    first, last = stored.get("conv0.weight"), stored.get(f"conv{depth - 1}.weight")
    whole = {f"conv{k}.weight" for k in range(min(depth, len(stored) + 1))} <= set(stored)
    if depth < 2 or first is None or last is None or first.ndim != 4 or len(last) % 4 or not whole:
        raise UserError(
            "holds no FFDNet: expected conv0.weight, conv0.bias, conv1.weight …", where=where
        )
    net = FFDNet(channels=len(last) // 4, width=len(first), depth=depth)
    state = {f"body.{match[1]}.{match[2]}": stored[name] for name, match in found.items()}
    state |= {name: tensor for name, tensor in stored.items() if name not in found}
    order = sub_image_order(net.channels)
    state["body.0.weight"] = _reordered(first, order, dim=1)
    for part in ("weight", "bias"):
        name = f"body.{depth - 1}.{part}"
        if name in state:
            state[name] = _reordered(state[name], order, dim=0)
    return net, state


def sub_image_order(channels: int) -> list[int]:
    """Which of the file's channels is each of pixel-unshuffle's, for `channels` image channels."""
    return [4 * channel + index for channel in range(channels) for index in _COLUMN_MAJOR]


def _reordered(tensor: Tensor, order: list[int], dim: int) -> Tensor:
    """The first channels along `dim` in another order; the noise map stays last."""
    rest = range(len(order), tensor.shape[dim])
    if tensor.shape[dim] < len(order):
        return tensor  # of another shape, which `fill` refuses
    return tensor.index_select(dim, torch.tensor([*order, *rest]))


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """Whose weights can be read, and what is known of them beyond the file."""

    load: Callable[[str | PathLike[str], str | None, str | None, str], Network]
    """(path, member, which, where) → the network."""
    info: Mapping[str, JSONValue]
    """What an exported file shall say of them."""
    sets: tuple[str, ...] = ()
    """Weights that one file may hold side by side, the default first."""


ADAPTERS: dict[str, Adapter] = {
    "dimsum": Adapter(
        load=_load_dimsum,
        info={
            "task": "generation",
            # All released models: dimsum/scripts/train.sh has path GVP, prediction velocity.
            "config": {"model": {"interpolant": "gvp", "prediction": "velocity"}},
        },
        sets=get_args(Which),
    ),
    "bsrt": Adapter(load=_load_bsrt, info={"task": "burst"}),
    "ffdnet": Adapter(load=_load_ffdnet, info={"task": "denoiser"}),
}
"""What `lit-restore convert --from` may name."""


def split_member(text: str) -> tuple[Path, str | None]:
    """``FILE`` or ``FILE.tar:MEMBER`` → the path, and the member's name or None."""
    head, colon, member = text.rpartition(".tar:")
    return (Path(f"{head}.tar"), member) if colon else (Path(text), None)
