"""A run on the disk: folder, checkpoints, event log, start; and the seam to its engine."""
