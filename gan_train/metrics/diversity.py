"""Measures that show when a generator repeats itself (collapse), which a distance may not show.

A generator that repeats 64 good images can have a low Fréchet distance, and one that draws a single
image for each class has perfect class accuracy. Pure functions, and a closed-form classifier.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gan_train.metrics.scores import Estimate
from gan_train.nn.collectives import all_sum

GROUP = 32
"""Pairs are formed within groups of this many neighbours of the sequence of images; a group stays
on one worker."""
_PIXELS = 2**18  # how many pixels of each image a distance computation takes at a time
_SHRINKAGE = 0.1
_LEAST_VARIANCE = 1e-12


def pixel_distances(images: Tensor) -> Tensor:
    """float64 [g, g]: Euclidean distance between every two of the images uint8 [g, C, H, W].

    Pixels count from 0 to 1. The sums of squares are exact: whole numbers below 2^53.
    """
    assert images.dtype == torch.uint8
    gram = torch.zeros(len(images), len(images), dtype=torch.float64, device=images.device)
    for part in images.flatten(1).split(_PIXELS, dim=1):
        columns = part.double()
        gram.addmm_(columns, columns.T)
    norms = gram.diagonal()
    return (norms[:, None] + norms - 2 * gram).sqrt() / 255


def class_entropy(counts: Tensor) -> Estimate:
    """The entropy of the counts [K] of K > 1 classes, divided by its maximum log K.

    It is 1 when all classes are equally frequent, and 0 when only one occurs. A sample of a class
    of share p has the influence -log p, so the error is the deviation of log p over samples.
    """
    share, total = counts.double() / counts.sum(), int(counts.sum())
    most, entropy = math.log(len(counts)), float(torch.special.entr(share).sum())
    squares = float(torch.xlogy(torch.xlogy(share, share), share).sum())
    error = math.sqrt(max(0.0, squares - entropy**2) / max(1, total - 1))
    return Estimate(entropy / most, error / most)


class LinearDiscriminant:
    """A classifier in closed form: Fisher's discriminant with a shrunk common covariance.

    Hastie, Tibshirani and Friedman 2009, section 4.3, on dimensions scaled to unit variance, with
    equal priors, so that it does not matter how frequent a class is. It is fitted from sums alone,
    which are added up over the workers, so that neither their number nor the batch matters.
    """

    def __init__(self, dims: int, classes: int, device: torch.device | str = "cpu") -> None:
        self.counts = torch.zeros(classes, dtype=torch.float64, device=device)  # [K]
        self.totals = torch.zeros(classes, dims, dtype=torch.float64, device=device)  # [K, D]
        self.outer = torch.zeros(dims, dims, dtype=torch.float64, device=device)  # [D, D]

    def update(self, features: Tensor, labels: Tensor) -> None:
        """Add features [n, D] with labels int64 [n]."""
        x = features.to(self.totals)
        self.counts += torch.bincount(labels, minlength=len(self.counts))
        self.totals.index_add_(0, labels, x)
        self.outer.addmm_(x.T, x)

    def add(self, other: LinearDiscriminant) -> None:
        """Add what another has seen."""
        self.counts += other.counts
        self.totals += other.totals
        self.outer += other.outer

    def all_reduce(self) -> None:
        """Sum over all workers."""
        for part in (self.counts, self.totals, self.outer):
            all_sum(part)

    def fit(self) -> tuple[Tensor, Tensor]:
        """Weights float64 [D, K] and bias [K]. A class without samples is never predicted."""
        count = self.counts.sum()
        mean = self.totals.sum(0) / count
        scale = (self.outer.diagonal() / count - mean.square()).clamp(min=_LEAST_VARIANCE).rsqrt()
        means = self.totals / self.counts.clamp(min=1)[:, None] * scale  # [K, D]
        scaled = self.outer * torch.outer(scale, scale)
        within = (scaled - (means * self.counts[:, None]).T @ means) / count
        within = (1 - _SHRINKAGE) * within
        within.diagonal().add_(_SHRINKAGE)  # every dimension has variance 1
        weights = torch.linalg.solve(within, means.T)  # [D, K]
        bias = -(means * weights.T).sum(1) / 2
        bias = bias.masked_fill(self.counts == 0, -torch.inf)
        return weights * scale[:, None], bias


def classify(features: Tensor, weights: Tensor, bias: Tensor) -> Tensor:
    """int64 [n]: the most probable class of each of the features [n, D]; `weights` and `bias` are
    those of `LinearDiscriminant.fit`."""
    return (features.to(weights) @ weights + bias).argmax(1)
