"""The published sizes, and a small one that trains on a CPU."""

from __future__ import annotations

from typing import Any

from lit_restore.errors import UserError
from lit_restore.networks.bsrt.model import BSRT

PRESETS: dict[str, dict[str, Any]] = {
    "small": {},
    "large": {"embed": 180, "depths": (8, 8, 8, 8, 8, 8)},
    "tiny": {"frames": 4, "width": 16, "embed": 24, "entry_depth": 2, "depths": (2, 2),
             "heads": 2, "groups": 4, "drop_path": 0.0},
}  # fmt: skip
"""Name → options of `BSRT`. The first two are the paper's BSRT-Small and BSRT-Large."""


def preset(name: str, **changes: Any) -> BSRT:
    """A network of a known size.

    Args:
        name: one of `PRESETS`.
        **changes: options of `BSRT` in place of the preset's.

    Raises:
        UserError: no such preset, or as `BSRT`.
    """
    if name not in PRESETS:
        raise UserError(
            f"there is no preset {name}; known are {', '.join(PRESETS)}", where="preset"
        )
    return BSRT(**{**PRESETS[name], **changes})
