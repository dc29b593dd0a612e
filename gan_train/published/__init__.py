"""Weights that others have published are read here, without executing anything of their files."""
