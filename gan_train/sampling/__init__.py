"""Pictures from a trained generator: grids, mixing, films, projection, whole files."""
