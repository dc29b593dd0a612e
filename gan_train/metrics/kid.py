"""Kernel distance: squared maximum mean discrepancy between two sets of features.

Binkowski et al. 2018, "Demystifying MMD GANs", section 4. Unlike the Fréchet distance it is
unbiased: its expectation does not depend on the number of images. Pure functions.
"""

from __future__ import annotations

import torch
from torch import Tensor

_ROWS = 1024  # how many rows of the kernel matrix are held at a time


def _kernel_sum(x: Tensor, y: Tensor) -> Tensor:
    """Sum over all pairs of k(x, y) = (x . y / D + 1)^3, in float64."""
    total = torch.zeros((), dtype=torch.float64, device=x.device)
    for rows in x.split(_ROWS):
        total += (rows @ y.T / x.shape[1] + 1).pow(3).sum()
    return total


def kernel_distance(features1: Tensor, features2: Tensor) -> float:
    """Unbiased MMD^2 under the cubic polynomial kernel, from features [n, D] and [m, D].

    This is the full U-statistic over all pairs. Without random blocks it needs no seed, and has the
    least variance. Its expectation is 0 when both sets come from one distribution, so single values
    may fall slightly below 0.
    """
    x, y = features1.double(), features2.double()
    n, m = len(x), len(y)
    assert n >= 2 and m >= 2, "the unbiased estimate needs two samples on each side"
    diagonal_x = (x.square().sum(1) / x.shape[1] + 1).pow(3).sum()
    diagonal_y = (y.square().sum(1) / y.shape[1] + 1).pow(3).sum()
    within_x = (_kernel_sum(x, x) - diagonal_x) / (n * (n - 1))
    within_y = (_kernel_sum(y, y) - diagonal_y) / (m * (m - 1))
    return float(within_x + within_y - 2 * _kernel_sum(x, y) / (n * m))


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
