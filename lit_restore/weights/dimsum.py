"""DiMSUM's published weights in our network, and ours in their layout.

Each of our tensors is a stack of theirs: both branches of a block lie in one tensor, all adaLN
projections in another. `layout` says which; loading stacks, exporting cuts.
"""

from __future__ import annotations

import inspect
import json
import math
import re
from collections.abc import Iterator, Mapping
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from lit_restore.errors import UserError
from lit_restore.io.tensors import load_tensors
from lit_restore.io.torch_files import load_foreign_weights
from lit_restore.io.wording import shown
from lit_restore.networks.base import JSONValue
from lit_restore.networks.dimsum import DiMSUM
from lit_restore.weights.transfer import load_exactly

Rows = tuple[tuple[str, int], ...]
"""Their tensors, in the order in which they are stacked, with the rows of each."""
Which = Literal["ema", "model"]
"""What a training's ``.pt`` holds side by side: the averaged weights, and the last."""

_DERIVED = re.compile(r".*\.(dwt\.w_(ll|lh|hl|hh)|idwt\.filters)$")
_GATHER = re.compile(r".*\.zigzag_paths(_reverse)?$")
_BLOCK = re.compile(r"blocks\.(\d{1,6})\.")
_BRANCHES = ("spatial_mamba", "freq_mamba")
_HAAR = ((1, 1, 1, 1), (1, 1, -1, -1), (1, -1, 1, -1), (1, -1, -1, 1))
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_DEEPEST = 1000
# What decides the output but shows in no tensor: option → the only value the release computes.
_ONLY: dict[str, JSONValue] = {
    "scan": "sweep-4", "wavelet_scan": "window", "wavelet": "haar", "levels": 2,
    "layout": "official", "time_scale": 1.0, "qk_norm": False,
}  # fmt: skip
_UNSEEN = ("attention_every", "attention_heads", "fusion_heads", "fusion")
"""Options that the release has too, and that no tensor shows."""


def load_dimsum(
    source: Mapping[str, Tensor] | str | PathLike[str],
    *,
    which: Which | None = None,
    keep_unused: bool = True,
    **options: JSONValue,
) -> DiMSUM:
    """A network with published weights, configured by them.

    Grid, width, depth, patch, channels, classes, state, taps and MLP follow from the tensors; what
    they do not show (scan orders, heads, how often the shared block is applied) is as released,
    unless an option says otherwise.

    Args:
        source: a state dict with the published names, or a file of one: ``.bin``, ``.pth`` or
            ``.pt`` (read without running anything it holds), or ``.safetensors``.
        which: the averaged or the last weights, where a training's ``.pt`` holds both; none takes
            the averaged ones if there are any.
        keep_unused: keep the published `cond_proj`, which no output depends on, so that an export
            is complete; 7 % of the parameters. False: leave them out.
        **options: options of `DiMSUM` to set, or that must hold.

    Returns:
        The network in float32 (float64 for float64 tensors) on the CPU, in evaluation mode.

    Raises:
        UserError: unreadable, no DiMSUM, tensors missing, of other shapes or not finite, an option
            that the tensors contradict, or a scan order that was never released.
    """
    if isinstance(source, Mapping):
        if which is not None:
            raise UserError(f"is one set of weights; leave {which} out", where="the state dict")
        return dimsum_from(source, where="the state dict", keep_unused=keep_unused, **options)
    stored = read_official(source, which=which)
    return dimsum_from(stored, where=str(source), keep_unused=keep_unused, **options)


def read_official(
    path: str | PathLike[str], member: str | None = None, *, which: Which | None = None
) -> dict[str, Tensor]:
    """The tensors of a published file, or of one inside a tar, under their own names.

    Raises:
        UserError: unreadable, or without the weights that `which` names.
    """
    if member is None and str(path).endswith(".safetensors"):
        if which is not None:
            raise UserError(f"holds one set of weights; leave {which} out", where=path)
        return load_tensors(path)
    return load_foreign_weights(path, member, key=which, prefer=("ema", "model"))


def dimsum_from(
    source: Mapping[str, Tensor], *, where: str, keep_unused: bool = True, **options: JSONValue
) -> DiMSUM:
    """As `load_dimsum`, of a state dict from the file `where`."""
    # DistributedDataParallel puts "module." before every name.
    prefix = "module." if all(name.startswith("module.") for name in source) else ""
    plain = {name.removeprefix(prefix): tensor for name, tensor in source.items()}
    stored = {name: tensor for name, tensor in plain.items() if not _DERIVED.match(name)}
    gather = next((name for name in stored if _GATHER.match(name)), None)
    if gather is not None:
        raise UserError(
            f"{shown(gather)}: gathered scan orders were never released and are not read",
            where=where,
        )
    _check_numbers(stored, where)
    found = infer_options(stored, where=where)
    if not keep_unused and found["conditioning"] == "inert":
        found["conditioning"] = "none"
        stored = {name: t for name, t in stored.items() if ".cond_proj." not in name}
    _agree(found, options, where)
    # Compared before anything is allocated: a small tensor can ask for a huge network.
    chosen: dict[str, Any] = {**found, **options}
    if found["attention_every"] and chosen["attention_every"] > chosen["depth"]:
        raise UserError(
            f"has {found['depth']} blocks and a shared one; after how many of them it is applied "
            "no tensor says: give attention_every",
            where=where,
        )
    with torch.device("meta"):
        plan = _built(chosen, where)
    _check_shapes(stored, plan, where)
    net = _built(chosen, where)
    if any(tensor.dtype == torch.float64 for tensor in stored.values()):
        net.double()
    load_exactly(net, from_official(stored, net, where=where), where=Path(where))
    return net.eval()


def infer_options(stored: Mapping[str, Tensor], *, where: str) -> dict[str, JSONValue]:
    """The options of the network whose published tensors these are.

    Raises:
        UserError: a tensor that tells one is missing or of an impossible shape, or a block is
            missing.
    """

    def shape(name: str, ndim: int) -> tuple[int, ...]:
        tensor = stored.get(name)
        if tensor is None or tensor.ndim != ndim or not tensor.numel():
            what = "is missing" if tensor is None else f"has shape {tuple(tensor.shape)}"
            raise UserError(f"is no DiMSUM: {name} {what}", where=where)
        return tuple(tensor.shape)

    _, tokens, width = shape("pos_embed", 3)
    _, channels, patch, _ = shape("x_embedder.proj.weight", 4)
    side = math.isqrt(tokens)
    if side * side != tokens:
        raise UserError(f"pos_embed has {tokens} tokens, which is no square grid", where=where)
    first = f"blocks.0.{_BRANCHES[0]}.mixer."
    inner, state = shape(f"{first}A_log", 2)
    # Only an option that has no default in a name's place, so that a mismatch names the tensor.
    return {
        "channels": channels,
        "size": side * patch,
        "patch": patch,
        "width": width,
        "depth": _depth(stored, where),
        "classes": shape("y_embedder.embedding_table.weight", 2)[0] - 1,
        "state": state,
        "taps": shape(f"{first}conv1d.weight", 3)[2],
        "expand": 2 * inner // width,
        "mlp_ratio": shape("blocks.0.mlp.w3.weight", 2)[1] // width,
        "attention_every": 4 if "attn_block.attn.qkv.weight" in stored else 0,
        "conditioning": "inert" if f"{first}cond_proj.weight" in stored else "none",
        "final_norm": "norm_f.weight" in stored,
    }


def _depth(stored: Mapping[str, Tensor], where: str) -> int:
    """Blocks 0 … depth - 1, none of them missing."""
    blocks = {int(match[1]) for name in stored if (match := _BLOCK.match(name))}
    depth = max(blocks) + 1
    missing = sorted(set(range(min(depth, _DEEPEST + 1))) - blocks)
    if missing:
        raise UserError(f"holds block {depth - 1}, but no block {missing[0]}", where=where)
    if depth > _DEEPEST:
        raise UserError(f"holds {depth} blocks, above {_DEEPEST}", where=where)
    return depth


def _check_numbers(stored: Mapping[str, object], where: str) -> None:
    for name, tensor in stored.items():
        if not isinstance(tensor, Tensor):
            reason = f"{shown(name)} is no tensor; give the state dict inside, such as 'ema'"
            raise UserError(reason, where=where)
        if tensor.dtype not in _FLOATS:
            kind = str(tensor.dtype).removeprefix("torch.")
            raise UserError(f"{shown(name)} holds {kind}, not weights", where=where)
        bad = int((~tensor.isfinite()).sum())
        if bad:
            plural = "value" if bad == 1 else "values"
            raise UserError(f"{shown(name)} holds {bad} non-finite {plural}", where=where)


def _built(options: Mapping[str, Any], where: str) -> DiMSUM:
    """A network of these options; what they break is told of the file that they come from."""
    try:
        return DiMSUM(**options)
    except UserError as error:
        raise UserError(f"cannot be built: {error}", where=where) from None


def from_official(stored: Mapping[str, Tensor], net: DiMSUM, *, where: str) -> dict[str, Tensor]:
    """Published tensors as a state dict of `net`.

    Raises:
        UserError: tensors are missing, of other shapes, or more than `net` has.
    """
    _check_shapes(stored, net, where)
    own = net.state_dict()
    return {
        name: torch.cat([stored[theirs] for theirs, _ in rows]).reshape(own[name].shape)
        for name, rows in layout(net)
    }


def _check_shapes(stored: Mapping[str, Tensor], net: DiMSUM, where: str) -> None:
    own, rest = net.state_dict(), set(stored)
    for name, rows in layout(net):
        for theirs, count in rows:
            tensor, shape = stored.get(theirs), _their_shape(name, tuple(own[name].shape), count)
            if tensor is None or tuple(tensor.shape) != shape:
                got = "is missing" if tensor is None else f"has shape {tuple(tensor.shape)}"
                raise UserError(f"{theirs} {got}, expected {shape}", where=where)
            rest.discard(theirs)
    if rest:
        names = ", ".join(shown(name) for name in sorted(rest)[:3])
        raise UserError(f"{len(rest)} tensors more than DiMSUM has: {names}", where=where)


def to_official(net: DiMSUM) -> dict[str, Tensor]:
    """A network's weights under the published names, derived buffers included.

    Raises:
        UserError: the published code would compute something else with these weights: it knows one
            value of an option, or square grids only.
    """
    _check_published(net)
    own, state = net.state_dict(), {}
    for name, rows in layout(net):
        parts = own[name].split([count for _, count in rows])
        for (theirs, count), part in zip(rows, parts, strict=True):
            state[theirs] = part.reshape(_their_shape(name, tuple(own[name].shape), count)).clone()
    for number in range(net.depth):
        state |= _buffers(f"blocks.{number}.freq_mamba.", state["pos_embed"])
    return state


def unseen_options(net: DiMSUM) -> str:
    """The options that whoever loads `to_official` must be told, as JSON."""
    return json.dumps({name: net.options[name] for name in _UNSEEN})


def _check_published(net: DiMSUM) -> None:
    for option, value in net.options.items():
        odd = value == "prefix" if option == "conditioning" else value != _ONLY.get(option, value)
        if odd or (option == "size" and net.grid[0] != net.grid[1]):
            raise UserError(f"{value} has no place in the published layout", where=option)


def layout(net: DiMSUM) -> Iterator[tuple[str, Rows]]:
    """(our name, their tensors in it) for every tensor of `net`."""
    own = {name: len(tensor) for name, tensor in net.state_dict().items()}
    table = {
        "head.weight": "final_layer.linear.weight",
        "head.bias": "final_layer.linear.bias",
        **{f"shared.{part}": f"attn_block.{theirs}" for part, theirs in _SHARED.items()},
    }
    for name, rows in own.items():
        if name.startswith("modulation."):
            yield name, tuple(_modulation(net, name.removeprefix("modulation.")))
        elif name.startswith("trunk."):
            _, number, part = name.split(".", 2)
            theirs = _in_block(part)
            share = rows // len(theirs)
            yield name, tuple((f"blocks.{number}.{official}", share) for official in theirs)
        else:
            yield name, ((table.get(name, name), rows),)


_SHARED = {
    f"{ours}.{kind}": f"{theirs}.{kind}"
    for ours, theirs in (
        ("qkv", "attn.qkv"), ("proj", "attn.proj"), ("mlp.w12", "mlp.w12"), ("mlp.w3", "mlp.w3"),
    )
    for kind in ("weight", "bias")
}  # fmt: skip
_MIXER = {
    "conv_weight": "conv1d.weight", "conv_bias": "conv1d.bias", "dt_bias": "dt_proj.bias",
}  # fmt: skip


def _in_block(part: str) -> list[str]:
    """Their tensors of one of ours, within a block."""
    if part.startswith("mixers."):
        inner = part.removeprefix("mixers.")
        return [f"{branch}.mixer.{_MIXER.get(inner, inner)}" for branch in _BRANCHES]
    if part.startswith("fusion.qkv."):
        kind = part.removeprefix("fusion.qkv.")
        return [f"proj.qkv1.{kind}", f"proj.qkv2.{kind}"]
    if part.startswith("fusion.proj."):
        return [part.replace("fusion.proj.", "proj.proj.")]
    return [part]


def _modulation(net: DiMSUM, kind: str) -> Iterator[tuple[str, int]]:
    half, end = net.width // 2, f"adaLN_modulation.1.{kind}"
    for number in range(net.depth):
        yield f"blocks.{number}.spatial_mamba.{end}", 3 * half
        yield f"blocks.{number}.freq_mamba.{end}", 3 * half
        yield f"blocks.{number}.{end}", 3 * net.width
    if net.shared is not None:
        yield f"attn_block.{end}", 6 * net.width
    yield f"final_layer.{end}", 2 * net.width


def _their_shape(name: str, ours: tuple[int, ...], rows: int) -> tuple[int, ...]:
    """The published shape of `rows` rows of one of our tensors."""
    inner = ours[1:]
    return (rows, 1, *inner) if name.endswith(".conv_weight") else (rows, *inner)


def _buffers(prefix: str, like: Tensor) -> dict[str, Tensor]:
    """The Haar filters that the release keeps in every block, ±1/2 but for float32's rounding."""
    root = torch.tensor(2**-0.5, dtype=torch.float32)
    filters = (torch.tensor(_HAAR) * root * root).to(like.dtype).view(4, 1, 2, 2)
    names = ("w_ll", "w_lh", "w_hl", "w_hh")
    singles = {f"{prefix}dwt.{n}": f[None].clone() for n, f in zip(names, filters, strict=True)}
    return {**singles, f"{prefix}idwt.filters": filters}


def _agree(found: Mapping[str, JSONValue], given: Mapping[str, Any], where: str) -> None:
    known = inspect.signature(DiMSUM.__init__).parameters
    for name, value in given.items():
        if name not in known:
            raise UserError(f"DiMSUM has no option {name}", where=where)
        if name in ("attention_every", "conditioning") or name not in found:
            continue
        one = value[0] if isinstance(value, list | tuple) and len(set(value)) == 1 else value
        if found[name] != one:
            raise UserError(f"has {name} {found[name]}, not {value}", where=where)
