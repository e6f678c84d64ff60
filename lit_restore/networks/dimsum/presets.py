"""The published sizes, and small ones that train on a CPU."""

from __future__ import annotations

from typing import Any

from lit_restore.errors import UserError
from lit_restore.networks.dimsum.model import DiMSUM

PRESETS: dict[str, dict[str, Any]] = {
    "B/2": {"width": 768, "depth": 12, "patch": 2},
    "L/2": {"width": 1024, "depth": 16, "patch": 2},
    "L/4": {"width": 1024, "depth": 16, "patch": 4},
    "XL/2": {"width": 1152, "depth": 24, "patch": 2},
    "tiny": {"width": 64, "depth": 4, "patch": 2, "size": 16, "attention_heads": 4,
             "fusion_heads": 2, "classes": 10},
    "pixels-32": {"channels": 3, "size": 32, "patch": 2, "width": 256, "depth": 12,
                  "attention_heads": 4, "fusion_heads": 4, "classes": 10},
    "pixels-64": {"channels": 3, "size": 64, "patch": 4, "width": 384, "depth": 12,
                  "attention_heads": 6, "fusion_heads": 3, "classes": 0},
}  # fmt: skip
"""Name → options of `DiMSUM`. The first four are the paper's, for latents of 256-pixel pictures."""


def preset(name: str, **changes: Any) -> DiMSUM:
    """A network of a known size.

    Args:
        name: one of `PRESETS`.
        **changes: options of `DiMSUM` in place of the preset's.

    Raises:
        UserError: no such preset, or as `DiMSUM`.
    """
    if name not in PRESETS:
        raise UserError(
            f"there is no preset {name}; known are {', '.join(PRESETS)}", where="preset"
        )
    return DiMSUM(**{**PRESETS[name], **changes})
