"""Kernel distance: squared maximum mean discrepancy between two sets of features.

Binkowski et al. 2018, "Demystifying MMD GANs", section 4. Unlike the Fréchet distance it is
unbiased: its expectation does not depend on the number of images. Pure functions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gan_train.metrics.pairs import over_pairs


def _kernel(products: Tensor, dims: int) -> Tensor:
    """k(x, y) = (x . y / D + 1)^3."""
    base = products / dims + 1
    return base * base * base


class MeanKernel:
    """The mean of the kernel over all pairs of x float64 [n, D] and y float64 [m, D]. Where y is x,
    pairs of a sample with itself do not count, so that the mean is unbiased."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self._dims, self._pairs = x.shape[1], len(x) * len(y)
        self._total = torch.zeros((), dtype=torch.float64, device=x.device)
        if y is x:
            assert len(x) >= 2, "the unbiased estimate needs two samples on each side"
            self._pairs -= len(x)
            self._total -= _kernel(x.square().sum(1), self._dims).sum()

    def update(self, rows: slice, products: Tensor) -> None:
        self._total += _kernel(products, self._dims).sum()

    @property
    def value(self) -> Tensor:
        """The mean, a float64 scalar."""
        return self._total / self._pairs


def _mean_kernel(x: Tensor, y: Tensor) -> Tensor:
    mean = MeanKernel(x, y)
    over_pairs(x, y, mean)
    return mean.value


def kernel_distance(features1: Tensor, features2: Tensor) -> float:
    """Unbiased MMD^2 under the cubic polynomial kernel, from features [n, D] and [m, D].

    This is the full U-statistic over all pairs. Without random blocks it needs no seed, and has the
    least variance. Its expectation is 0 when both sets come from one distribution, so single values
    may fall slightly below 0.
    """
    x, y = features1.double(), features2.double()
    return float(_mean_kernel(x, x) + _mean_kernel(y, y) - 2 * _mean_kernel(x, y))


def shared_classes(labels1: Tensor, labels2: Tensor) -> list[int]:
    """The classes, ascending, that occur at least twice in both labels int64 [n] and [m]."""
    several = []
    for labels in (labels1, labels2):
        values, counts = labels.unique(return_counts=True)
        several.append(set(values[counts >= 2].tolist()))
    return sorted(several[0] & several[1])


def kernel_distance_within_classes(
    features1: Tensor, labels1: Tensor, features2: Tensor, labels2: Tensor
) -> float:
    """`kernel_distance` between the samples of one class, averaged over the shared classes.

    Features [n, D] and [m, D] have labels int64 [n] and [m]. Classes of few samples can be compared
    because the estimate is unbiased. Its expectation is 0 when each class of one side looks like
    the same class of the other. Good samples of the wrong class make it large; a measure of all
    classes together does not show them.
    """
    classes = shared_classes(labels1, labels2)
    assert classes, "no class occurs twice on both sides"
    distances = [kernel_distance(features1[labels1 == k], features2[labels2 == k]) for k in classes]
    return sum(distances) / len(distances)
