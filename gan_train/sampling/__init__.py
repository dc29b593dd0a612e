"""What a trained generator is used for: grids, mixing, films, projection, picture files."""
