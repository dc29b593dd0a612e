"""Whether a generator repeats training images: its samples lie nearer to them than real ones do.

Meehan, Chaudhuri and Dasgupta 2020, "A Non-Parametric Test to Detect Data-Copying in Generative
Models" (arXiv 2004.05675), section 3, without its cells: the distances of samples to their nearest
training image are compared with those of other real images to theirs by the test of Mann and
Whitney (1947). Samples are compared with the first N real images; the next N stand for images that
were held out: they lie no nearer to the first than chance has it, whether or not the generator was
trained on them, too. A copy of an image beyond the first N is not noticed.

Samples of a poor generator lie far from everything. So copies among bad samples can stay hidden;
the page of nearest pairs (`nearest_page.py`) shows them.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gan_train.metrics.estimates import of_mean
from gan_train.metrics.pairs import squared_distances
from gan_train.metrics.scores import Estimate


class NearestReal:
    """The distances of each of y float64 [m, D] to the nearest of the first `among` of x float64
    [n, D]; measured over the pairs of x and y."""

    def __init__(self, x: Tensor, y: Tensor, among: int) -> None:
        self._norms = x.square().sum(1), y.square().sum(1)
        self._among = among
        self._squared = torch.full((len(y),), torch.inf, dtype=torch.float64, device=y.device)
        self.places = torch.zeros(len(y), dtype=torch.int64, device=y.device)
        """int64 [m]: the places in x of the nearest ones."""

    def update(self, rows: slice, products: Tensor) -> None:
        rows = slice(rows.start, min(rows.stop, self._among))
        if rows.start >= rows.stop:
            return
        products = products[: rows.stop - rows.start]
        squared = squared_distances(self._norms[0][rows], self._norms[1], products)
        found, where = squared.min(dim=0)
        nearer = found < self._squared
        self._squared[nearer], self.places[nearer] = found[nearer], where[nearer] + rows.start

    @property
    def distances(self) -> Tensor:
        """float64 [m]."""
        return self._squared.sqrt()


def memorised(samples: Tensor, unseen: Tensor) -> tuple[Estimate, Estimate]:
    """The chance that a sample lies nearer to its nearest training image than a real image that is
    not among these, and the one-sided p-value of that being above a half by luck.

    `samples` [n] and `unseen` [m] are distances. The chance counts ties as halves, and has an error
    over samples; the p-value is the normal approximation with the correction for ties.
    """
    samples, unseen = samples.double(), unseen.double().sort().values
    n, m = len(samples), len(unseen)
    farther = m - torch.searchsorted(unseen, samples, right=True)
    not_nearer = m - torch.searchsorted(unseen, samples)
    chance = of_mean((farther + not_nearer).double() / (2 * m))
    _, ties = torch.cat([samples, unseen]).unique(return_counts=True)
    total = n + m
    tied = float((ties.double() ** 3 - ties).sum()) / (total * (total - 1))
    spread = math.sqrt(n * m / 12 * (total + 1 - tied))
    if spread == 0:  # all distances are equal
        return chance, Estimate(1.0)
    z = (n * m * (chance.value - 0.5) - 0.5) / spread
    return chance, Estimate(math.erfc(z / math.sqrt(2)) / 2)
