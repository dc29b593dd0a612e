"""Sliced Wasserstein distance between two sets of features.

Berthet et al. 2026, "Monge Inception Distance for Generative Models Evaluation" (MIND, arXiv
2605.06797): the mean, over random directions, of the squared Wasserstein distance of what the two
sets look like along a direction. In one dimension that distance is exact, by sorting. No covariance
is estimated, and more than two moments count. The paper finds that a tenth of the images do, which
was not so here (docs/measures.md). Pure functions.

The mean is multiplied by the number of dimensions D, so that a shift of all features costs what it
costs in a Fréchet distance. Directions, features and scale are chosen here: it is not called MIND.

The error is over samples of the second set, for the given directions. The derivative of a
one-dimensional distance by the mass at y is Kantorovich's potential: its slope is 2 (y - T(y)),
where T maps y to its partner in the order (Santambrogio 2015, proposition 7.17).
"""

from __future__ import annotations

import torch
from torch import Tensor

from gan_train.metrics.estimates import of_influences
from gan_train.metrics.scores import Estimate
from gan_train.rng import BatchRandom

DIRECTIONS = 1024
_AT_ONCE = 128


def directions(dims: int, device: torch.device) -> Tensor:
    """float64 [DIRECTIONS, dims]: unit vectors, uniform on the sphere, always the same ones."""
    places = torch.arange(DIRECTIONS, device=device)
    vectors = BatchRandom(0, "sliced Wasserstein", places).normal(dims).double()
    return vectors / vectors.norm(dim=1, keepdim=True)


def sliced_wasserstein(features1: Tensor, features2: Tensor) -> Estimate:
    """D times the mean squared Wasserstein-2 distance along `DIRECTIONS` lines, from features
    [n, D] of each set."""
    x, y = features1.double(), features2.double()
    assert x.shape == y.shape, "both sides have the same number of images"
    count, dims = x.shape
    total = torch.zeros((), dtype=torch.float64, device=x.device)
    influences = torch.zeros(count, dtype=torch.float64, device=x.device)
    for lines in directions(dims, x.device).split(_AT_ONCE):
        along_x = (x @ lines.T).sort(dim=0).values  # [n, lines]
        along_y, order = (y @ lines.T).sort(dim=0)
        apart = along_y - along_x
        total += apart.square().sum() / count
        steps = (apart[1:] + apart[:-1]) * along_y.diff(dim=0)
        potential = torch.zeros_like(apart)
        potential[1:] = steps.cumsum(dim=0)
        potential -= potential.mean(dim=0)
        influences += torch.empty_like(potential).scatter_(0, order, potential).sum(dim=1)
    scale = dims / DIRECTIONS
    return of_influences(float(total) * scale, influences * scale)
