"""Standard normal noise, each sample's from its own generator: the same whatever the batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lit_restore.seeding import torch_generator


def standard_normal(
    shape: Sequence[int],
    generators: Sequence[torch.Generator],
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """One draw of `shape` per generator.

    Args:
        shape: of one sample, (C, H, W).
        generators: one per sample; if they are on the CPU, the noise is the same on every device.
        device: where the noise goes.
        dtype: float32 or float64.

    Returns:
        (B, C, H, W).
    """
    draws = [torch.randn(*shape, generator=g, device=g.device, dtype=dtype) for g in generators]
    return torch.stack(draws).to(device)


def sample_generators(
    seed: int, positions: Sequence[int | str], stream: str
) -> list[torch.Generator]:
    """One generator per sample on the CPU: stream "noise" for x_0, another for an SDE's steps."""
    return [torch_generator(seed, position, stream) for position in positions]


def noise_like(x: Tensor, seed: int, names: Sequence[int | str]) -> Tensor:
    """Standard normal noise like `x` (B, …), drawn on its device from each sample's stream "noise".

    Args:
        x: whose shape, type and device it takes.
        seed: the run's seed.
        names: the samples' positions in the run, or their keys.
    """
    generators = [torch_generator(seed, name, "noise", x.device) for name in names]
    return standard_normal(x.shape[1:], generators, device=x.device, dtype=x.dtype)
