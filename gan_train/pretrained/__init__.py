"""Frozen recognition networks that others have trained: their weights, and losses with them."""
