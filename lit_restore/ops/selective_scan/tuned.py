"""Which GPU backend was measured to be the fastest, by `tuned.json`; nothing is guessed there.

An entry is a measurement of one shape on one architecture; it speaks for shapes within a factor of
two of its number of channels (batch · groups · D) and of its length, in its type. Elsewhere the
order of `dispatch.BACKENDS` holds. `lit-restore tune` measures.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import cache
from importlib import resources

import torch

from lit_restore.ops.selective_scan.arguments import Scan


@dataclass(frozen=True)
class Entry:
    """One measurement: medians in milliseconds of forward with backward, by backend."""

    architecture: str
    """sm_90."""
    dtype: str
    """float32, bfloat16 or float16."""
    channels: int
    """batch · groups · D."""
    length: int
    milliseconds: dict[str, float]

    def distance(self, channels: int, length: int) -> float:
        """Factor between this shape and another, the larger of the two."""
        return math.exp(
            max(abs(math.log(channels / self.channels)), abs(math.log(length / self.length)))
        )


@cache
def table() -> tuple[Entry, ...]:
    """All measurements."""
    text = resources.files(__package__).joinpath("tuned.json").read_text(encoding="utf-8")
    return tuple(Entry(**entry) for entry in json.loads(text)["entries"])


def preferred(s: Scan) -> str | None:
    """The backend that was fastest at the nearest shape measured; None where none is near."""
    if s.u.device.type != "cuda" or not s.u.numel():
        return None
    major, minor = torch.cuda.get_device_capability(s.u.device)
    batch, length, groups, width = s.u.shape
    return nearest(
        table(), f"sm_{major}{minor}", str(s.u.dtype).removeprefix("torch."),
        batch * groups * width, length,
    )  # fmt: skip


def nearest(
    entries: tuple[Entry, ...], architecture: str, dtype: str, channels: int, length: int
) -> str | None:
    """What `preferred` looks up."""
    fit = [e for e in entries if (e.architecture, e.dtype) == (architecture, dtype)]
    near = min(fit, key=lambda e: e.distance(channels, length), default=None)
    if near is None or near.distance(channels, length) > 2:
        return None
    return min(near.milliseconds, key=near.milliseconds.__getitem__)
