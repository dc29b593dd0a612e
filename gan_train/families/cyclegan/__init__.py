"""CycleGAN: `family.py` has its settings and losses, `networks.py` and `pool.py` the parts."""
