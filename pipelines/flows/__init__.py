"""Prefect: the flows, what its UI shows, and the driver that follows and stops a training."""
