"""Pictures as numbers: resizing, grids, tiles, and the turn from bytes to [-1, 1] and back."""
