"""Every random stream of a run, as a pure function of (seed, position).

A *position* is a sample's place in the run: 0 for the first sample ever drawn, and so on across
epochs, or a sample's key where there is no run (validation, evaluation). Each named *stream* of a
sample (``crop``, ``sigma``, ``noise`` …) has a generator of its own, so that world size,
accumulation, worker count and resuming change nothing that is drawn. Only randomness inside layers
(dropout) depends on the rank and the step, by `layer_seed`.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch

_MASK = (1 << 63) - 1


def stream_seed(seed: int, position: int | str, stream: str) -> int:
    """The 63-bit seed of one stream of one sample.

    Args:
        seed: the run's seed.
        position: the sample's position in the run, or its key.
        stream: the stream's name.

    Returns:
        An integer in [0, 2**63); BLAKE2b of the three, so streams are independent.
    """
    text = f"{seed}/{'#' if isinstance(position, int) else '@'}{position}/{stream}"
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") & _MASK


def torch_generator(
    seed: int, position: int | str, stream: str, device: torch.device | str = "cpu"
) -> torch.Generator:
    """A torch generator for one stream of one sample, on `device`."""
    generator = torch.Generator(device=device)
    generator.manual_seed(stream_seed(seed, position, stream))
    return generator


def numpy_generator(seed: int, position: int | str, stream: str) -> np.random.Generator:
    """A NumPy (Philox) generator for one stream of one sample."""
    return np.random.Generator(np.random.Philox(key=stream_seed(seed, position, stream)))


def layer_seed(seed: int, rank: int, step: int, micro_batch: int) -> int:
    """The seed for randomness inside layers in one forward pass of one rank."""
    return stream_seed(seed, step, f"layers/{rank}/{micro_batch}")
