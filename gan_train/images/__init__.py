"""Images as tensors: bytes and floats in [-1, 1], resizing, grids, tiles."""
