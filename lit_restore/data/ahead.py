"""Fetching what the order needs next, in a thread of the process that reads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from lit_restore.data.order import Order
from lit_restore.io.cache import Pin


class Ahead:
    """Fetches wanted shards one after the other and keeps them from eviction until taken.

    Args:
        fetch: shard → pin; None where another process fetches it. It must not raise.
    """

    def __init__(self, fetch: Callable[[int], Pin | None]) -> None:
        self._fetch = fetch
        self._wanted: list[int] = []
        self._held: dict[int, Pin] = {}
        self._change = threading.Condition()
        self._thread: threading.Thread | None = None

    def want(self, shards: Sequence[int]) -> None:
        """Fetch these from now on, in this order; pins of others are given up."""
        with self._change:
            for shard in [shard for shard in self._held if shard not in shards]:
                self._held.pop(shard).close()
            self._wanted = [shard for shard in shards if shard not in self._held]
            self._change.notify()
            if self._thread is None and self._wanted:
                self._thread = threading.Thread(target=self._work, daemon=True)
                self._thread.start()

    def take(self, shard: int) -> Pin | None:
        """The pin of a fetched shard, to be closed by the caller; it is not wanted any more."""
        with self._change:
            if shard in self._wanted:
                self._wanted.remove(shard)
            return self._held.pop(shard, None)

    def _work(self) -> None:
        while True:
            with self._change:
                while not self._wanted:
                    self._change.wait()
                shard = self._wanted[0]
            pin = self._fetch(shard)
            with self._change:
                if shard not in self._wanted:  # taken or given up meanwhile
                    if pin is not None:
                        pin.close()
                    continue
                self._wanted.remove(shard)
                if pin is not None:
                    self._held[shard] = pin


class FollowedOrder(Order):
    """The order of a run, telling which shards its present and next window need.

    Args:
        counts: samples per shard.
        seed: the run's seed.
        window: shards shuffled together.
        tell: called with the shards, most urgent first, when a window begins.
    """

    def __init__(
        self,
        counts: Sequence[int],
        *,
        seed: int,
        window: int,
        tell: Callable[[Sequence[int]], None],
    ) -> None:
        super().__init__(counts, seed=seed, window=window)
        self._tell = tell
        self._told: tuple[int, int] | None = None

    def index(self, position: int) -> int:
        """As `Order.index`."""
        place = self.place(position)
        if place != self._told:
            self._told = place
            self._tell([*self.members(*place), *self.members(*self._after(*place))])
        return super().index(position)

    def place(self, position: int) -> tuple[int, int]:
        """(epoch, window) in which a position lies."""
        epoch, offset = divmod(position, self.size)
        borders = self.starts if self.window == 0 else self._epoch(epoch)[1]
        return epoch, int(borders.searchsorted(offset, side="right")) - 1

    def members(self, epoch: int, number: int) -> list[int]:
        """The shards of a window; without shuffling each shard is one."""
        if self.window == 0:
            return [number]
        shards = self._epoch(epoch)[0]
        return [int(s) for s in shards[number * self.window : (number + 1) * self.window]]

    def _after(self, epoch: int, number: int) -> tuple[int, int]:
        borders = self.starts if self.window == 0 else self._epoch(epoch)[1]
        return (epoch, number + 1) if number + 2 < len(borders) else (epoch + 1, 0)
