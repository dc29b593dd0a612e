"""How image files become batches: the source, the shards and their index, the order, the loader."""
