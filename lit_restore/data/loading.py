"""Samples through worker processes into batches."""

from __future__ import annotations

import signal
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from lit_restore.data.batch import Refusal, Sample, collate
from lit_restore.data.plan import PositionBatches
from lit_restore.io.signals import inherited_blocked, worker_signals

_STUCK, _STUCK_FETCHING = 300, 3600
"""Seconds after which a loader gives its workers up; longer where they wait for a network."""


def make_loader(
    samples: Dataset[Sample | Refusal],
    batches: PositionBatches,
    *,
    workers: int,
    prefetch: int,
    fetching: bool,
) -> DataLoader[Sample | Refusal]:
    """Batches in the order of their positions.

    Args:
        samples: position → sample.
        batches: the positions of each batch.
        workers: processes; 0 reads in this one.
        prefetch: batches that each keeps ready.
        fetching: they wait for a network, and may take longer.
    """
    return _Loader(
        samples,
        batch_sampler=batches,
        collate_fn=collate,
        num_workers=workers,
        prefetch_factor=prefetch if workers else None,
        worker_init_fn=_start_worker,
        pin_memory=torch.cuda.is_available(),
        timeout=(_STUCK_FETCHING if fetching else _STUCK) if workers else 0,
    )


class _Loader(DataLoader[Sample | Refusal]):
    """Whose workers no SIGTERM ends while they start."""

    def __iter__(self) -> Any:
        with inherited_blocked(signal.SIGTERM):
            return super().__iter__()


def _start_worker(worker: int) -> None:
    worker_signals()
