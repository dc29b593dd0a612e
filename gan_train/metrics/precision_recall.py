"""Precision and recall of a generator, by nearest neighbours among features.

Kynkäänniemi et al. 2019, "Improved Precision and Recall Metric for Assessing Generative Models",
equations 1 and 2: a set's manifold is the union of balls around its samples that just reach each
sample's k-th nearest neighbour. Distances are float64, and measured over `pairs.over_pairs`.

Both are shares, and have the error of a share. For precision that is exact, given the real images.
Recall counts real images, for which many samples share in each decision; a jackknife over samples
overrates its error by two, because balls are no smooth function of them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gan_train.metrics.estimates import of_mean
from gan_train.metrics.pairs import squared_distances
from gan_train.metrics.scores import Estimate

NEIGHBOURS = 3
"""The paper's k."""


class Neighbours:
    """The distances of each of x float64 [n, D] to its k nearest others; measured over the pairs of
    x with itself. Identical samples are neighbours at distance 0."""

    def __init__(self, x: Tensor, k: int = NEIGHBOURS) -> None:
        assert len(x) > k, f"{k} neighbours need more than {k} samples"
        self._k, self._norms = k, x.square().sum(1)
        self._nearest: list[Tensor] = []

    def update(self, rows: slice, products: Tensor) -> None:
        squared = squared_distances(self._norms[rows], self._norms, products)
        squared[:, rows].fill_diagonal_(torch.inf)  # a sample is no neighbour of itself
        self._nearest.append(squared.topk(self._k, dim=1, largest=False).values.sqrt())

    @property
    def distances(self) -> Tensor:
        """float64 [n, k], ascending."""
        return torch.cat(self._nearest)


class Manifolds:
    """Precision and recall of fake features y float64 [m, D] against real ones x float64 [n, D].

    The radii [n] and [m] are the last column of `Neighbours.distances` of each set.
    """

    def __init__(self, x: Tensor, x_radii: Tensor, y: Tensor, y_radii: Tensor) -> None:
        self._norms = x.square().sum(1), y.square().sum(1)
        self._reach = x_radii.square(), y_radii.square()
        self._precise = torch.zeros(len(y), dtype=torch.bool, device=y.device)
        self._recalled = torch.zeros(len(x), dtype=torch.bool, device=x.device)

    def update(self, rows: slice, products: Tensor) -> None:
        squared = squared_distances(self._norms[0][rows], self._norms[1], products)
        self._precise |= (squared <= self._reach[0][rows, None]).any(0)
        self._recalled[rows] = (squared <= self._reach[1]).any(1)

    @property
    def precision(self) -> Estimate:
        """The share of fake samples within the manifold of the real ones: quality."""
        return of_mean(self._precise)

    @property
    def recall(self) -> Estimate:
        """The share of real samples within the manifold of the fake ones: variety."""
        found = of_mean(self._recalled)
        return Estimate(found.value, found.error)
