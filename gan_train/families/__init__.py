"""The families of GANs, each in a file or folder of its own; `catalogue.py` lists them."""
