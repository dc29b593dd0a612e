"""CycleGAN: settings and losses in `family.py`, its parts in `networks.py` and `pool.py`."""
