"""StyleGAN 1 and 2: `build.py` chooses one, `family.py` has the losses that both use."""
