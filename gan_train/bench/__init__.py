"""What training costs: timings of parts and of a step, and counts of operations."""
