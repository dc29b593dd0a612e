"""Kernel distance: squared maximum mean discrepancy between two sets of features.

Binkowski et al. 2018, "Demystifying MMD GANs", section 4. Unlike the Fréchet distance it is
unbiased: its expectation does not depend on the number of images. Pure functions.

Its standard error is the jackknife's, over samples of the second set: without one of its samples
the value follows from the sums of the kernel over that sample's pairs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gan_train.metrics.estimates import average, of_left_out
from gan_train.metrics.pairs import over_pairs
from gan_train.metrics.scores import Estimate


def _kernel(products: Tensor, dims: int) -> Tensor:
    """k(x, y) = (x . y / D + 1)^3."""
    base = products / dims + 1
    return base * base * base


class MeanKernel:
    """The mean of the kernel over all pairs of x float64 [n, D] and y float64 [m, D]. Where y is x,
    pairs of a sample with itself do not count, so that the mean is unbiased."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self._dims, self._count, self._same = x.shape[1], (len(x), len(y)), y is x
        self._sums = torch.zeros(len(y), dtype=torch.float64, device=x.device)  # of each y's pairs
        if self._same:
            assert len(x) >= 2, "the unbiased estimate needs two samples on each side"
            self._sums -= _kernel(x.square().sum(1), self._dims)

    def update(self, rows: slice, products: Tensor) -> None:
        self._sums += _kernel(products, self._dims).sum(0)

    @property
    def value(self) -> Tensor:
        """The mean, a float64 scalar."""
        n, m = self._count
        return self._sums.sum() / (n * (n - 1) if self._same else n * m)

    @property
    def without(self) -> Tensor:
        """float64 [m]: the mean without each sample of y, on both sides where y is x. Not a number
        where no pair is left."""
        n, m = self._count
        if self._same:
            return (self._sums.sum() - 2 * self._sums) / ((n - 1) * (n - 2))
        return (self._sums.sum() - self._sums) / (n * (m - 1))


def kernel_estimate(real: Tensor, within: MeanKernel, across: MeanKernel) -> Estimate:
    """The distance with its error, from the mean kernel (a scalar) of the first set, `within` the
    second set, and `across` the first and the second."""
    value = float(real + within.value - 2 * across.value)
    without = within.without - 2 * across.without
    return of_left_out(value, without) if without.isfinite().all() else Estimate(value)


def kernel_distance(features1: Tensor, features2: Tensor) -> Estimate:
    """Unbiased MMD^2 under the cubic polynomial kernel, from features [n, D] and [m, D].

    This is the full U-statistic over all pairs. Without random blocks it needs no seed, and has the
    least variance. Its expectation is 0 when both sets come from one distribution, so single values
    may fall slightly below 0.
    """
    x, y = features1.double(), features2.double()
    means = [MeanKernel(x, x), MeanKernel(y, y), MeanKernel(x, y)]
    for mean, sides in zip(means, ((x, x), (y, y), (x, y)), strict=True):
        over_pairs(*sides, mean)
    return kernel_estimate(means[0].value, *means[1:])


def shared_classes(labels1: Tensor, labels2: Tensor) -> list[int]:
    """The classes, ascending, that occur at least twice in both labels int64 [n] and [m]."""
    several = []
    for labels in (labels1, labels2):
        values, counts = labels.unique(return_counts=True)
        several.append(set(values[counts >= 2].tolist()))
    return sorted(several[0] & several[1])


def kernel_distance_within_classes(
    features1: Tensor, labels1: Tensor, features2: Tensor, labels2: Tensor
) -> Estimate:
    """`kernel_distance` between the samples of one class, averaged over the shared classes.

    Features [n, D] and [m, D] have labels int64 [n] and [m]. Classes of few samples can be compared
    because the estimate is unbiased. Its expectation is 0 when each class of one side looks like
    the same class of the other. Good samples of the wrong class make it large; a measure of all
    classes together does not show them.
    """
    classes = shared_classes(labels1, labels2)
    assert classes, "no class occurs twice on both sides"
    distances = [kernel_distance(features1[labels1 == k], features2[labels2 == k]) for k in classes]
    found = average(distances)  # samples of different classes are independent
    return Estimate(found.value, found.error)
