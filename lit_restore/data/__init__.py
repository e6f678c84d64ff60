"""From webdataset shards to batches: index, order, reader, decoding, degradations, packing."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lit_restore.data.module import ProceduralOptions, ShardDataModule

__all__ = ["ProceduralOptions", "ShardDataModule"]


def __getattr__(name: str) -> object:
    """Import the DataModule when it is asked for: packing shards needs no Lightning."""
    if name in __all__:
        from lit_restore.data import module

        return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
