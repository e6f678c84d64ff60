"""Load, convert and export network weights."""

from lit_restore.weights.exported import load_exported, save_exported
from lit_restore.weights.loading import LoadedNetwork, load_network

__all__ = ["LoadedNetwork", "load_exported", "load_network", "save_exported"]
