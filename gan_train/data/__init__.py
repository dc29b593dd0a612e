"""From pictures to batches: sources, shards, their index, the order, the loader."""
