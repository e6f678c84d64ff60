"""A folder of samples: what is missing is made, by one process or one a device."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from lit_restore.data.merged import merged
from lit_restore.data.packing_progress import Progress
from lit_restore.errors import RankLost, UserError
from lit_restore.io import fs
from lit_restore.io.lock import NAME as LOCK
from lit_restore.io.lock import RunLock
from lit_restore.sampling.outputs import MOST_IN_GRID, write_grid, write_npz
from lit_restore.sampling.process import Share, Task, make_share
from lit_restore.sampling.record import (
    ARRAY,
    GRID,
    IMAGES,
    MADE,
    Made,
    append_made,
    read_folder,
    sweep,
    write_record,
)
from lit_restore.sampling.settings import Settings
from lit_restore.weights.loading import LoadedNetwork

_LINES = 20
"""At most so many lines of progress, where there is no terminal."""


@dataclass(frozen=True, kw_only=True)
class SampleJob:
    """What is to lie in the folder at the end."""

    loaded: LoadedNetwork
    settings: Settings
    vae: Path | None
    out: Path
    count: int
    batch: int
    devices: Sequence[str]
    """One for each process; process k of n makes samples k, k + n, …"""
    npz: bool = False
    """Also write all images as one array."""
    progress: bool = True


def make_samples(job: SampleJob) -> dict[int, Made]:
    """Make what is missing of a folder of samples, then its grid and record.

    Returns:
        All samples of the folder, by index.

    Raises:
        UserError: the folder is of other settings, holds more samples, or is in use; not enough
            memory; a sample is not finite.
        OSError: the folder cannot be written.
        RankLost: a process was killed.
    """
    read_folder(job.out, job.settings)  # a folder of other things gets no lock file either
    with RunLock(job.out):
        made = read_folder(job.out, job.settings)
        sweep(job.out)
        if made and max(made) >= job.count:
            raise UserError(f"holds {len(made)} samples; give --n {max(made) + 1}", where=job.out)
        fs.make_dir(job.out / IMAGES)
        if len(made) < job.count:
            _make_missing(job, made)
        files = [job.out / IMAGES / job.settings.file(index) for index in range(job.count)]
        classes = job.settings.classes or ()
        write_grid(job.out / GRID, files[:MOST_IN_GRID], classes=len(classes))
        if job.npz:
            write_npz(job.out / ARRAY, files)
        write_record(job.out, job.settings, made, devices=job.devices, count=job.count)
        for rest in (MADE, LOCK):
            fs.remove_file(job.out / rest)
    return made


def _make_missing(job: SampleJob, made: dict[int, Made]) -> None:
    """Add to `made`, noting each batch."""
    write_record(job.out, job.settings, made, devices=job.devices, count=job.count)
    # Lines that stand in the record now, and an array that would lack what is added.
    for rest in (MADE, ARRAY):
        fs.remove_file(job.out / rest)
    missing = [index for index in range(job.count) if index not in made]
    every = max(1, len(missing) // _LINES)
    with Progress(len(missing), enabled=job.progress) as bar, closing(_made(job, missing)) as found:
        told = 0
        for few in found:
            append_made(job.out, few)
            made.update((m.index, m) for m in few)
            for _ in few:
                bar.step()
            if bar.count - told >= every or bar.count == len(missing):
                told = bar.count
                bar.say("samples")


def _made(job: SampleJob, missing: Sequence[int]) -> Generator[list[Made], None, None]:
    """Samples as they are published, batch by batch."""
    try:
        yield from merged(_maker(job), _shares(job, missing), start=_start(job))
    except RankLost:
        mend = "run the same command again, or with a smaller --batch"
        raise RankLost(f"a process died (killed, or out of memory?); {mend}") from None
    finally:
        sweep(job.out)


def _shares(job: SampleJob, missing: Sequence[int]) -> list[Share]:
    count = len(job.devices)
    parts = [tuple(index for index in missing if index % count == k) for k in range(count)]
    busy = [(part, device) for part, device in zip(parts, job.devices, strict=True) if part]
    return [Share(indices=part, device=d, alone=len(busy) == 1) for part, d in busy]


def _maker(job: SampleJob) -> Callable[[Share], Iterator[list[Made]]]:
    task = Task(
        settings=job.settings,
        source=job.loaded.source,
        vae=job.vae,
        images=job.out / IMAGES,
        batch=job.batch,
    )
    # Forked processes share the network's memory; to others it would travel, so they read it.
    travels = len(job.devices) > 1 and _start(job) == "spawn"
    return partial(make_share, task=task, loaded=None if travels else job.loaded)


def _start(job: SampleJob) -> Literal["fork", "spawn"]:
    """How processes begin: a forked one cannot use CUDA where its parent has."""
    return "spawn" if any(device != "cpu" for device in job.devices) else "fork"
