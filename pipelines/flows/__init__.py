"""Prefect: the flows, what its UI shows of them, and the driver that attends to a training."""
