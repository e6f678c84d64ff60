"""One process's share of the samples: noise of each index, carried to data, written as PNG."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lit_restore.data.memory import memory_is_short
from lit_restore.diffusion import (
    FlowPrior,
    Result,
    sample,
    sample_generators,
    standard_normal,
)
from lit_restore.errors import UserError
from lit_restore.io import images
from lit_restore.io.quantise import to_uint8
from lit_restore.sampling.record import Made
from lit_restore.sampling.settings import Precision, Settings
from lit_restore.weights.autoencoder import load_autoencoder
from lit_restore.weights.loading import LoadedNetwork, load_network
from lit_restore.weights.prior import data_shape, prior_of

Decoder = Callable[[Tensor], Tensor]

_DECODED_AT_ONCE = 8
"""Latents, or the decoder of large pictures would need more memory than the network."""


@dataclass(frozen=True, kw_only=True)
class Share:
    """What one process does."""

    indices: tuple[int, ...]
    """The samples it makes."""
    device: str
    alone: bool
    """Whether it is the only process."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """What all processes have in common."""

    settings: Settings
    source: Path
    """File or checkpoint folder of the network."""
    vae: Path | None
    images: Path
    """Where they go."""
    batch: int


def make_share(share: Share, *, task: Task, loaded: LoadedNetwork | None) -> Iterator[list[Made]]:
    """Make samples, batch by batch.

    Args:
        share: which, and where.
        task: how.
        loaded: the network, where this process has it; else it is read.

    Yields:
        The samples of each batch, once their images are published.

    Raises:
        UserError: not enough memory, or a sample is not finite.
        OSError: an image cannot be written.
    """
    settings, device = task.settings, torch.device(share.device)
    loaded = loaded or load_network(task.source, profile=settings.profile)
    with _settled(device, settings.precision, alone=share.alone):
        loaded.net.to(device).eval()
        prior = prior_of(loaded, settings.guidance)
        decode = _decoder(task, device)
        shape = data_shape(loaded)
        for start in range(0, len(share.indices), task.batch):
            few = share.indices[start : start + task.batch]
            try:
                result = _carried(prior, shape, few, settings, device)
                with torch.no_grad():
                    pictures = decode(result.samples)
            except (RuntimeError, MemoryError) as error:
                if not memory_is_short(error):
                    raise
                told = f"not enough memory on {device}; lower it"
                raise UserError(told, where=f"--batch {task.batch}") from None
            yield _published(few, pictures, result, task)


def _carried(
    prior: FlowPrior,
    shape: Sequence[int],
    indices: Sequence[int],
    settings: Settings,
    device: torch.device,
) -> Result:
    """Noise of each index's own streams → data; only the network depends on the device."""
    seed = settings.seed
    noise = standard_normal(shape, sample_generators(seed, indices, "noise"), device=device)
    labels = None
    if settings.classes is not None:
        labels = torch.tensor([settings.label(index) for index in indices], device=device)
    with _computing(settings.precision, device):
        return sample(
            prior, noise, labels, settings.sampler,
            generators=sample_generators(seed, indices, "steps"),
        )  # fmt: skip


def _published(indices: Sequence[int], pictures: Tensor, result: Result, task: Task) -> list[Made]:
    finite = pictures.isfinite().flatten(1).all(1).tolist()
    made = []
    for row, (index, pixels) in enumerate(zip(indices, to_uint8(pictures), strict=True)):
        if not finite[row]:
            raise UserError(
                f"sample {index} is not finite; the weights, or the precision, are at fault",
                where=task.source,
            )
        images.write_png(task.images / task.settings.file(index), pixels)
        made.append(
            Made(index=index, nfe=int(result.nfe[row]), finished=bool(result.finished[row]))
        )
    return made


def _decoder(task: Task, device: torch.device) -> Decoder:
    """Data as pictures (B, 3, H, W), nominally in [0, 1]."""
    if task.vae is None:
        return lambda x: (x.float() + 1) / 2
    half = task.settings.precision == "bf16"
    autoencoder = load_autoencoder(
        task.vae, device=device, dtype=torch.bfloat16 if half else torch.float32
    )
    return lambda x: torch.cat(
        [autoencoder.decode(few) for few in torch.split(x, _DECODED_AT_ONCE)]
    )


def _computing(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    if precision == "32":
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16)


@contextmanager
def _settled(device: torch.device, precision: Precision, *, alone: bool) -> Iterator[None]:
    """Whatever else would change the last bits is fixed; processes on one CPU share its cores."""
    threads = torch.get_num_threads()
    if device.type == "cpu" and not alone:
        # A forked child of a process that computed with several threads must not use them.
        torch.set_num_threads(1)
    try:
        with torch.backends.cudnn.flags(
            enabled=True, benchmark=False, deterministic=True, allow_tf32=precision != "32"
        ):
            yield
    finally:
        torch.set_num_threads(threads)
