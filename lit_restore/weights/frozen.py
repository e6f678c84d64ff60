"""Networks that are used as they are: read, checked to be what is asked for, and named by hash."""

from __future__ import annotations

from os import PathLike

from lit_restore.errors import UserError
from lit_restore.networks import DENOISERS
from lit_restore.weights.loading import LoadedNetwork, load_network
from lit_restore.weights.prior import model_config


def known_noise(loaded: LoadedNetwork) -> float | None:
    """The highest noise level that a denoiser was trained for, in image units; None: not told."""
    level = model_config(loaded).get("sigma_max")
    known = isinstance(level, int | float) and not isinstance(level, bool)
    return float(level) if known and isinstance(level, int | float) else None


def load_denoiser(
    path: str | PathLike[str], *, where: str, profile: str | None = None
) -> LoadedNetwork:
    """A denoiser, `net(noisy, sigma)`, in evaluation mode on the CPU.

    Args:
        path: as `load_network` takes it.
        where: the option that named it, for error lines.
        profile: which average of the weights; by default the first.

    Raises:
        UserError: as `load_network`; or it holds another kind of network.
    """
    loaded = load_network(path, profile=profile)
    if loaded.net.kind not in DENOISERS:
        known = ", ".join(DENOISERS)
        told = f"{path} holds a {loaded.net.kind}, a denoiser is needed: one of {known}"
        raise UserError(told, where=where)
    return loaded
