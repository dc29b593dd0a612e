"""Inner products of all pairs of features, computed once for all measures that need them.

The kernel distance and the distances between neighbours are functions of inner products alone. A
measure takes them a block of rows at a time, so that the whole matrix is never in memory.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

ROWS = 1024
"""How many rows of the matrix are held at a time."""


class PairMeasure(Protocol):
    """Something that is measured of all pairs of x [n, D] and y [m, D]."""

    def update(self, rows: slice, products: Tensor) -> None:
        """Take the inner products float64 [rows, m] of these rows of x with all of y. They must not
        be changed."""


def over_pairs(x: Tensor, y: Tensor, *measures: PairMeasure) -> None:
    """Give the inner products of all pairs of x float64 [n, D] and y float64 [m, D] to the
    measures."""
    for start in range(0, len(x), ROWS):
        rows = slice(start, min(start + ROWS, len(x)))
        products = x[rows] @ y.T
        for measure in measures:
            measure.update(rows, products)


def squared_distances(x_norms: Tensor, y_norms: Tensor, products: Tensor) -> Tensor:
    """Squared distances [n, m] from squared norms [n] and [m] and inner products [n, m]."""
    return (x_norms[:, None] + y_norms - 2 * products).clamp(min=0)
