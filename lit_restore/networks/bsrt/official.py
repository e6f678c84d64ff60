"""The published weights of BSRT in our network: the same names, less what is recomputed.

Names and shapes were read off the published code's constructors (github.com/Algolzw/BSRT). Its
files are plain state dicts, with `module.` before every name where they were saved from several
GPUs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from lit_restore.errors import UserError
from lit_restore.networks.bsrt.model import BSRT

_RECOMPUTED = ("relative_position_index", "attn_mask")
"""Buffers that follow from the window and the size of the input."""


def bsrt_from_official(state: Mapping[str, Tensor], *, where: str = "weights") -> BSRT:
    """A network of the published weights' size, with them.

    Args:
        state: the file's state dict.
        where: the file, for error lines.

    Returns:
        The network, in evaluation mode; its type is PyTorch's default.

    Raises:
        UserError: these are not the weights of a BSRT with Swin features and plain fusion.
    """
    kept = {
        name.removeprefix("module."): tensor
        for name, tensor in state.items()
        if not name.endswith(_RECOMPUTED)
    }
    net = _empty(kept, where)
    stored, wanted = ({n: t.shape for n, t in s.items()} for s in (kept, net.state_dict()))
    if stored != wanted:
        name = min(n for n in stored.keys() | wanted.keys() if stored.get(n) != wanted.get(n))
        raise UserError(
            f"{name} is {_shown(stored, name)} in the file and {_shown(wanted, name)} in a BSRT of "
            "its size (Swin features, no non-local fusion)",
            where=where,
        )
    net.load_state_dict(kept, strict=True)
    return net.eval()


def _empty(state: Mapping[str, Tensor], where: str) -> BSRT:
    """A network of the size that shapes and the numbers of blocks tell."""
    depths: list[int] = []
    while depth := _count(state, rf"layers\.{len(depths)}\.residual_group\.blocks\.(\d+)\."):
        depths.append(depth)
    try:
        embed = len(state["conv_first.weight"])
        width = state["fea_L2_conv1.weight"].shape[1]
        table = state["pre_layers.0.attn.relative_position_bias_table"]
        return BSRT(
            frames=state["fusion.weight"].shape[1] // width,
            width=width,
            embed=embed,
            entry_depth=_count(state, r"pre_layers\.(\d+)\."),
            depths=depths,
            heads=table.shape[1],
            window=(round(len(table) ** 0.5) + 1) // 2,
            mlp_ratio=len(state["pre_layers.0.mlp.fc1.weight"]) // embed,
            groups=len(state["align.L1_dcnpack.conv_offset_mask.weight"]) // 27,
        )
    except (KeyError, IndexError, TypeError, ZeroDivisionError, UserError) as error:
        raise UserError(
            f"is no BSRT with Swin features and plain fusion ({error})", where=where
        ) from None


def _count(state: Mapping[str, Tensor], pattern: str) -> int:
    """How many numbers, from 0 on, the names have at the pattern's group."""
    found = (re.match(pattern, name) for name in state)
    return 1 + max((int(match[1]) for match in found if match), default=-1)


def _shown(shapes: Mapping[str, tuple[int, ...]], name: str) -> str:
    return str(tuple(shapes[name])) if name in shapes else "missing"
