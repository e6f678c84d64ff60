"""Load, convert and export network weights."""

from lit_restore.weights.dimsum import load_dimsum
from lit_restore.weights.exported import load_exported, save_exported
from lit_restore.weights.loading import LoadedNetwork, load_network
from lit_restore.weights.prior import load_prior

__all__ = [
    "LoadedNetwork",
    "load_dimsum",
    "load_exported",
    "load_network",
    "load_prior",
    "save_exported",
]
