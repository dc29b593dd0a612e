"""Prefect: the flows, what their UI shows, and the driver that attends to a training."""
