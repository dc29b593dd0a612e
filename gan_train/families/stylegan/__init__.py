"""StyleGAN 1 and 2: `build.py` chooses, `family.py` has the losses both share."""
