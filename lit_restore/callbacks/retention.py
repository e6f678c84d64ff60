"""Which checkpoints may go: arithmetic only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lit_restore.errors import UserError
from lit_restore.weights.checkpoint import samples_of


@dataclass(frozen=True, kw_only=True)
class Retention:
    """The newest, the best and the periodic checkpoints stay."""

    last: int
    """Newest checkpoints kept, at least one."""
    best: int
    """Checkpoints kept by score."""
    every: int
    """Images between checkpoints kept for ever; 0 for none."""

    def __post_init__(self) -> None:
        if self.last < 1:
            raise UserError("keep at least the newest checkpoint", where="checkpoint.keep_last")

    def surplus(self, scores: Mapping[Path, float | None]) -> list[Path]:
        """The checkpoints to drop.

        Args:
            scores: complete checkpoint folders → validation score (higher is better) or None.
        """
        newest = sorted(scores, key=samples_of)
        scored = {path: score for path, score in scores.items() if score is not None}
        ranked = sorted(scored, key=lambda path: (-scored[path], samples_of(path)))
        kept = {*newest[-self.last :], *ranked[: self.best]}
        if self.every:
            kept |= {path for path in newest if samples_of(path) % self.every == 0}
        return [path for path in newest if path not in kept]
