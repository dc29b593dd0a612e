"""Uses of a trained generator: image grids, style mixing, films, projection, picture files."""
