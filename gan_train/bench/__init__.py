"""Measures what training costs: times of the parts of a run and of a step, counts of operations."""
