"""Layers, losses and schedules that several families share, and collectives over the workers."""
