"""The eight families of GANs, a file or a folder each; `catalogue.py` lists them."""
