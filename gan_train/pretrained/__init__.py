"""Frozen recognition networks that others have trained: checked weights, and content losses."""
