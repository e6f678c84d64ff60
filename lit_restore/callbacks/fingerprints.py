"""Whether a checkpoint belongs to the run that would go on from it."""

from __future__ import annotations

import importlib.metadata
import logging
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from lit_restore.errors import UserError

_log = logging.getLogger(__name__)

_PACKAGES = ("lit-restore", "torch", "lightning", "numpy", "pillow", "simplejpeg", "safetensors")


def versions() -> dict[str, Any]:
    """Versions and threads: what bit-equality holds for."""
    found: dict[str, Any] = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return {**found, "threads": torch.get_num_threads()}


def check_fingerprint(
    saved: Mapping[str, Any], now: Mapping[str, Any], allowed: Sequence[str], where: Path
) -> None:
    """Compare group by group.

    Args:
        saved: the checkpoint's fingerprint, group → values.
        now: this run's.
        allowed: groups that may differ, which is then only told.
        where: the checkpoint, for the error line.

    Raises:
        UserError: a group differs; names the group and the first difference.
    """
    for group, values in now.items():
        difference = first_difference(saved.get(group), values, group)
        if difference is None:
            continue
        if group not in allowed:
            mend = (
                "--init_from starts a fine-tune from it"
                if group == "model"
                else f"--checkpoint.allow_change [{group}] goes on all the same"
            )
            raise UserError(f"another run's checkpoint: {difference}; {mend}", where=where)
        _log.warning("%s: %s (allowed)", where, difference)


def first_difference(saved: Any, now: Any, path: str) -> str | None:
    """The first place where two JSON values differ, in words; None where they are equal."""
    if isinstance(saved, Mapping) and isinstance(now, Mapping):
        for key in [*now, *(key for key in saved if key not in now)]:
            found = first_difference(saved.get(key), now.get(key), f"{path}.{key}")
            if found:
                return found
        return None
    if isinstance(saved, Sequence) and isinstance(now, Sequence) and not isinstance(now, str):
        if len(saved) != len(now):
            return f"{path} has {len(now)} entries, the checkpoint's {len(saved)}"
        for index, (one, other) in enumerate(zip(saved, now, strict=True)):
            found = first_difference(one, other, f"{path}[{index}]")
            if found:
                return found
        return None
    return None if saved == now else f"{path} is {now!r}, the checkpoint's {saved!r}"
