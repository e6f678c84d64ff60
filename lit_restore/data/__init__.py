"""From webdataset shards to batches: index, order, reader, decoding, degradations, packing."""
