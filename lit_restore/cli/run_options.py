"""Options of a run that belong to no single part of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class WandbOptions:
    """The W&B mirror of metrics.jsonl and of the sample grids."""

    mode: Literal["auto", "online", "offline", "off"] = "auto"
    """auto: online where an API key is configured, else offline."""
    project: str = "lit_restore"
    """The W&B project."""
