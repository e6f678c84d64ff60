"""Position → sample: the order of a run as a pure function of (seed, position).

Per epoch the shards are shuffled, cut into windows of `window` shards, and the samples of each
window shuffled together. The working set is one window of shards, every sample comes exactly once
an epoch, and any position is found without walking there.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from lit_restore.seeding import numpy_generator

_CACHED_WINDOWS = 4

ORDER_VERSION = "windowed-1"
"""Named in the data fingerprint: another algorithm is another order."""


class Order:
    """The order of the samples of a set of shards.

    Args:
        counts: samples per shard; empty shards are allowed.
        seed: the run's seed.
        window: shards shuffled together; 0 for no shuffling at all (validation).
    """

    def __init__(self, counts: Sequence[int], *, seed: int, window: int) -> None:
        self.counts = np.asarray(counts, dtype=np.int64)
        self.starts = np.concatenate([[0], np.cumsum(self.counts)])
        self.size = int(self.starts[-1])
        self.seed = seed
        self.window = window
        self._epochs: OrderedDict[int, tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]] = (
            OrderedDict()
        )
        self._windows: OrderedDict[tuple[int, int], npt.NDArray[np.int64]] = OrderedDict()

    def index(self, position: int) -> int:
        """The sample at `position`, as an index into all samples in shard order."""
        epoch, offset = divmod(position, self.size)
        if self.window == 0:
            return offset
        shards, borders = self._epoch(epoch)
        number = int(np.searchsorted(borders, offset, side="right")) - 1
        samples = self._window(epoch, number, shards)
        return int(samples[offset - borders[number]])

    def _epoch(self, epoch: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """The shuffled shards of an epoch, and the offset at which each window starts."""
        if epoch not in self._epochs:
            shards = numpy_generator(self.seed, epoch, "shards").permutation(len(self.counts))
            sizes = [
                self.counts[shards[first : first + self.window]].sum()
                for first in range(0, len(shards), self.window)
            ]
            self._epochs[epoch] = shards, np.concatenate([[0], np.cumsum(sizes)])
            if len(self._epochs) > 2:
                self._epochs.popitem(last=False)
        return self._epochs[epoch]

    def _window(
        self, epoch: int, number: int, shards: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.int64]:
        key = (epoch, number)
        if key not in self._windows:
            members = shards[number * self.window : (number + 1) * self.window]
            samples = np.concatenate(
                [np.arange(self.starts[s], self.starts[s + 1]) for s in members]
            )
            self._windows[key] = numpy_generator(self.seed, epoch, f"window/{number}").permutation(
                samples
            )
            if len(self._windows) > _CACHED_WINDOWS:
                self._windows.popitem(last=False)
        return self._windows[key]
