"""Methods without a network: doing nothing, and total variation."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from lit_restore.errors import UserError
from lit_restore.evaluation.methods import Method, Restore

TV_WEIGHTS = (0.04, 0.06, 0.08, 0.10, 0.12, 0.14, 0.16, 0.18, 0.20)
"""Candidates for the weight of total variation; the best mean of a table wins."""
_TV_EPS, _TV_ITERATIONS = 2e-4, 200


def noisy() -> list[Method]:
    """The noisy picture itself, clamped and rounded like every output."""
    return [Method(name="noisy", restore=lambda x, sigma: x, timed=False)]


def tv_chambolle() -> list[Method]:
    """Total variation (Chambolle 2004) by scikit-image, one method for each weight."""
    return [
        Method(
            name=f"tv-chambolle-{weight:.2f}",
            restore=_total_variation(weight),
            family="tv-chambolle",
            setting=f"weight {weight:.2f}",
            identity={"weight": weight, "eps": _TV_EPS, "iterations": _TV_ITERATIONS},
        )
        for weight in TV_WEIGHTS
    ]


def _total_variation(weight: float) -> Restore:
    def restore(x: Tensor, sigma: float) -> Tensor:
        from skimage.restoration import denoise_tv_chambolle

        estimates = [
            denoise_tv_chambolle(  # type: ignore[no-untyped-call]
                image.permute(1, 2, 0).double().numpy(),
                weight=weight,
                eps=_TV_EPS,
                max_num_iter=_TV_ITERATIONS,
                channel_axis=-1,
            )
            for image in x.cpu()
        ]
        return torch.from_numpy(np.stack(estimates)).permute(0, 3, 1, 2)

    return restore


BASELINES: dict[str, Callable[[], list[Method]]] = {"noisy": noisy, "tv-chambolle": tv_chambolle}
"""Name → its methods."""


def find_baselines(names: tuple[str, ...]) -> list[Method]:
    """The methods of the named baselines.

    Raises:
        UserError: there is no such baseline.
    """
    for name in names:
        if name not in BASELINES:
            raise UserError(f"there are {', '.join(BASELINES)}", where=f"--baselines {name}")
    return [method for name in dict.fromkeys(names) for method in BASELINES[name]()]
