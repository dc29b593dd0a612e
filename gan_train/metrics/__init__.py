"""Measures of generators. A new one is a file here, its name in `scores.py`, and its call in
`evaluator.py`."""
