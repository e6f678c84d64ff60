"""Load, convert and export network weights."""

from lit_restore.weights.dimsum import load_dimsum
from lit_restore.weights.exported import load_exported, save_exported
from lit_restore.weights.fused import LoadedFusion, load_fusion
from lit_restore.weights.loading import LoadedNetwork, load_network
from lit_restore.weights.prior import load_prior
from lit_restore.weights.restorers import LoadedRestorer, load_restorer

__all__ = [
    "LoadedFusion",
    "LoadedNetwork",
    "LoadedRestorer",
    "load_dimsum",
    "load_exported",
    "load_fusion",
    "load_network",
    "load_prior",
    "load_restorer",
    "save_exported",
]
