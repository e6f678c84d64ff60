"""How fast a run is, and what it takes of the machine: clocks, memory, ranks that lag."""

from __future__ import annotations

import resource
import statistics
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from lit_restore.io import fs

_STATM = "/proc/self/statm"
_KEPT = 64
_UNCOUNTED = 3


class Stopwatch:
    """Time between records, and the share of it spent waiting for data.

    Args:
        clock: seconds from any origin.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._started = self._idle_since = clock()
        self._waited = 0.0
        self._images = 0

    def data_arrived(self) -> float:
        """A batch is here; the seconds it was waited for."""
        waited = self._clock() - self._idle_since
        self._waited += waited
        return waited

    def step_ended(self, images: int) -> None:
        """`images` are done."""
        self._images += images
        self.idle()

    def idle(self) -> None:
        """The next thing is to ask for data."""
        self._idle_since = self._clock()

    def lap(self) -> dict[str, float]:
        """Seconds, images per second and data-wait share since the last lap."""
        now = self._clock()
        seconds = max(now - self._started, 1e-9)
        values = {
            "seconds": seconds,
            "images_per_second": self._images / seconds,
            "data_wait": min(1.0, self._waited / seconds),
        }
        self._started, self._waited, self._images = now, 0.0, 0
        return values


class OwnTime:
    """Seconds that this rank itself needs for a micro-batch, without waiting for the others.

    From the wait for data to the end of the rank's own backward pass: autograd calls back when all
    nodes of the graph are done, and DDP's wait for its reductions is queued behind that call. All
    that comes later is either a wait or the same on every rank. On CUDA two events mark the span
    and are read only when `mean` is asked for. Not for FSDP2, whose forward pass gathers weights
    and waits for slow ranks there: all ranks would seem equally slow.

    The last 64 micro-batches count; the first three of a process do not (warm-up, compilation).

    Args:
        device: where the network is.
        clock: seconds from any origin, used on CPUs.
    """

    def __init__(self, device: torch.device, clock: Callable[[], float] = time.monotonic) -> None:
        self._mark = marker(device, clock)
        self._spans: deque[tuple[float, Any, Any]] = deque(maxlen=_KEPT)
        self._began: Any = None
        self._waited = 0.0
        self._uncounted = _UNCOUNTED

    def began(self, waited: float) -> None:
        """A batch came after `waited` seconds, and its forward pass begins."""
        self._waited, self._began = waited, self._mark()

    def watch(self, loss: Tensor) -> None:
        """Before the backward pass of `loss`."""
        after_own_backward(loss, self.ended)

    def ended(self) -> None:
        """The gradients of this rank are done."""
        if self._uncounted:
            self._uncounted -= 1
        elif self._began is not None:
            self._spans.append((self._waited, self._began, self._mark()))

    def mean(self) -> float:
        """Mean seconds of a micro-batch; NaN where none is measured yet."""
        spans = [waited + seconds_between(start, end) for waited, start, end in self._spans]
        return statistics.fmean(spans) if spans else float("nan")


def after_own_backward(loss: Tensor, call: Callable[[], None]) -> None:
    """Have `call` called when the gradients of `loss` are done, before any wait for other ranks.

    Args:
        loss: requires a gradient; its backward pass is yet to come.
        call: called in the backward pass, from any thread.
    """

    def at_the_start(_: Tensor) -> None:
        # Final callbacks are called in the order in which they are queued; DDP queues its own
        # once its last bucket is ready.
        torch.autograd.Variable._execution_engine.queue_callback(call)

    if loss.requires_grad:
        loss.register_hook(at_the_start)  # type: ignore[no-untyped-call]


def marker(device: torch.device, clock: Callable[[], float]) -> Callable[[], Any]:
    """What marks a moment: events on the stream on CUDA, which nobody waits for, else a clock."""
    return clock if device.type != "cuda" else _event


def _event() -> torch.cuda.Event:
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record()
    return event


def seconds_between(start: Any, end: Any) -> float:
    """Seconds between two marks; waits until the device has passed the second."""
    if isinstance(start, torch.cuda.Event):
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3
    return float(end - start)


def skew(times: Sequence[float]) -> float | None:
    """The slowest rank's time over the median rank's (the lower one of an even number).

    With two ranks it is slow over fast: the mean of the two as median would hide any lag.

    Args:
        times: each rank's mean seconds.

    Returns:
        At least 1; None where a time is missing (NaN) or not positive.
    """
    if not times or not all(t > 0 for t in times):
        return None
    return max(times) / statistics.median_low(times)


def mfu(
    images_per_second: float, flops: float | None, peak: float | None, world: int
) -> float | None:
    """Model FLOPs utilisation: the share of the devices' peak that the network's FLOPs are.

    Args:
        images_per_second: over all ranks.
        flops: FLOPs of one image, forward and backward.
        peak: FLOP/s of one device.
        world: devices.

    Returns:
        A share, or None where `flops` or `peak` is not known.
    """
    if not flops or not peak:
        return None
    return images_per_second * flops / (peak * world)


def memory_gb(device: torch.device) -> float:
    """Gigabytes (1e9 bytes) in use, which tells no step to wait.

    On CUDA the peak of what tensors took on `device` since the last call; on the CPU what this
    process (without its data workers) holds in memory now.
    """
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        return peak / 1e9
    return resident_bytes() / 1e9


def resident_bytes() -> int:
    """Bytes of memory this process holds now; where the system does not say, at its peak."""
    if fs.exists(_STATM):
        return int(fs.read_text(_STATM).split()[1]) * resource.getpagesize()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
