"""From webdataset shards to batches: index, order, reader, decoding, degradations, packing."""

from lit_restore.data.module import ProceduralOptions, ShardDataModule

__all__ = ["ProceduralOptions", "ShardDataModule"]
