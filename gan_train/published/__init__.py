"""Weights that others have published, read without executing anything of them."""
