"""Run folders, checkpoints and event logs, how a run starts, and its interface to the engine."""
