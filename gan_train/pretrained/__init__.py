"""Frozen recognition networks of others: their checked weights, content losses on them."""
