"""Density and coverage of a generator, by nearest neighbours among features.

Naeem et al. 2020, "Reliable Fidelity and Diversity Metrics for Generative Models" (arXiv
2002.09797), equations 4 and 5. Balls stand around real images alone, and each just reaches its k-th
nearest real image. Density counts in how many balls a sample lies, so that one outlier among real
images matters less than it does for precision; coverage is the share of balls that hold a sample.
Distances are float64, and measured over `pairs.over_pairs`.

Both errors are over samples, for the given real images: density is a mean over samples, and
coverage has the jackknife's error, as a sample counts where it is the only one in a ball. That
error is right for many dimensions, and overrated by up to a half for few; the error of a share,
which recall has, would be half the true one.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gan_train.metrics.estimates import of_left_out, of_mean
from gan_train.metrics.pairs import squared_distances
from gan_train.metrics.scores import Estimate

NEIGHBOURS = 5
"""The paper's k, with which equal sets have a coverage of .97. Where there are fewer other images,
k is their number."""


class Balls:
    """Density and coverage of fake features y float64 [m, D] against real ones x float64 [n, D].

    The radii [n] are the distances of x to their k-th nearest others.
    """

    def __init__(self, x: Tensor, radii: Tensor, y: Tensor) -> None:
        self._norms = x.square().sum(1), y.square().sum(1)
        self._reach, self._k = radii.square(), min(NEIGHBOURS, len(x) - 1)
        self._around = torch.zeros(len(y), dtype=torch.float64, device=y.device)  # balls around y
        self._alone = torch.zeros_like(self._around)  # of these, where no other sample is
        self._covered = torch.zeros(len(x), dtype=torch.bool, device=x.device)

    def update(self, rows: slice, products: Tensor) -> None:
        squared = squared_distances(self._norms[0][rows], self._norms[1], products)
        inside = squared <= self._reach[rows, None]  # [rows, m]
        held = inside.sum(1)
        self._around += inside.sum(0)
        self._alone += inside[held == 1].sum(0)
        self._covered[rows] = held > 0

    @property
    def density(self) -> Estimate:
        """The mean number of balls around a sample, divided by k: about 1 for real images, more
        where samples crowd in dense places."""
        return of_mean(self._around / self._k)

    @property
    def coverage(self) -> Estimate:
        """The share of balls that hold a sample."""
        value = float(self._covered.double().mean())
        return of_left_out(value, value - self._alone / len(self._covered))
