"""Reads weights that others have published, without executing any code in their files."""
