"""What a constructor raised: the user's mistake with its full key, or a bug with its traceback."""

from __future__ import annotations

import inspect
import traceback

from lit_restore.errors import UserError
from lit_restore.networks import NETWORKS

_GROUPS = {
    "sampler": "model.sampler", "guidance": "model.guidance", "times": "model.times",
    "grid": "model.sampler.grid",
}  # fmt: skip
"""How the diffusion room, which knows no config, names its options, and where they stand."""
_AROUND = ("lit_restore.cli.", "lightning.pytorch.cli", "jsonargparse", "contextlib")
"""Modules that call the constructors."""


def in_full(error: UserError) -> UserError:
    """The error with the config's whole key where a part named an option of its own."""
    where, _, message = str(error).partition(": ")
    group, dot, option = where.partition(".")
    if dot and group in _GROUPS:
        return UserError(message, where=f"{_GROUPS[group]}.{option}")
    options = {name for kind in NETWORKS.values() for name in inspect.signature(kind).parameters}
    if error.where not in options:
        return error
    return UserError(error.message, where=f"model.net.{error.where}")


def maker_of(error: Exception) -> str | None:
    """Whose constructor refused its options: None for a bug, "" where the line has the key.

    The Trainer, its callbacks, strategies and profilers refuse options by exceptions of every
    kind, and the parser those of a union's parts; out of a network or a callback of ours, the same
    exceptions are bugs.
    """
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    modules = [str(frame.f_globals.get("__name__")) for frame in frames]
    inside = [name for name in modules if not name.startswith(_AROUND)]
    if not inside and any(name.startswith("jsonargparse") for name in modules):
        return ""
    ours = any(name.startswith("lit_restore.") for name in inside)
    return "trainer" if inside and inside[0].startswith("lightning.") and not ours else None
