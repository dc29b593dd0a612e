"""What a run keeps on the disk, where it begins, and the seam to the engine that launched it."""
