"""How far packing is: a bar on a terminal, a line a shard elsewhere."""

from __future__ import annotations

import sys

from tqdm import tqdm


class Progress:
    """Counts samples; a context manager.

    Args:
        total: samples to come.
        enabled: show anything at all.
    """

    def __init__(self, total: int, *, enabled: bool) -> None:
        terminal = sys.stderr.isatty()
        self.lines = enabled and not terminal
        self.total, self.count = total, 0
        self.bar = tqdm(
            total=total, unit="image", disable=not (enabled and terminal), dynamic_ncols=True
        )

    def step(self) -> None:
        """One sample is done."""
        self.count += 1
        self.bar.update()

    def say(self, text: str) -> None:
        """A shard is done."""
        if self.lines:
            print(f"{text} ({self.count} of {self.total})", file=sys.stderr, flush=True)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()
