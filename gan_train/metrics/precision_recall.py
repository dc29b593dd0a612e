"""Precision and recall of a generator, by nearest neighbours among features.

Kynkäänniemi et al. 2019, "Improved Precision and Recall Metric for Assessing Generative Models",
equations 1 and 2: a set's manifold is the union of balls around its samples that just reach each
sample's k-th nearest neighbour. Pure functions, distances in float64, a block of rows at a time.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

NEIGHBOURS = 3
"""The paper's k."""
_ROWS = 1024


def _squared_distances(x: Tensor, y: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Yield blocks of rows of x float64 [n, D], each with its squared distances [rows, m] to y
    [m, D]."""
    norms = y.square().sum(1)
    for start in range(0, len(x), _ROWS):
        block = x[start : start + _ROWS]
        squared = block.square().sum(1, keepdim=True) + norms - 2 * block @ y.T
        yield slice(start, start + len(block)), squared.clamp(min=0)


def neighbour_distances(features: Tensor, k: int = NEIGHBOURS) -> Tensor:
    """float64 [n, k]: distances of each of the features [n, D] to the k nearest others, ascending.

    Identical samples are neighbours at distance 0.
    """
    x = features.double()
    assert len(x) > k, f"{k} neighbours need more than {k} samples"
    nearest = []
    for rows, squared in _squared_distances(x, x):
        squared[:, rows].fill_diagonal_(torch.inf)  # a sample is no neighbour of itself
        nearest.append(squared.topk(k, dim=1, largest=False).values.sqrt())
    return torch.cat(nearest)


def precision_recall(
    real: Tensor, real_radii: Tensor, fake: Tensor, fake_radii: Tensor
) -> tuple[float, float]:
    """(precision, recall) of fake features [m, D] against real ones [n, D].

    The radii [n] and [m] are the last column of `neighbour_distances` of each set. Precision
    is the share of fake samples within the manifold of the real ones (quality), recall the share of
    real samples within the manifold of the fake ones (variety).
    """
    x, y = real.double(), fake.double()
    real_reach, fake_reach = real_radii.square(), fake_radii.square()
    precise = torch.zeros(len(y), dtype=torch.bool, device=y.device)
    recalled = 0
    for rows, squared in _squared_distances(x, y):
        precise |= (squared <= real_reach[rows, None]).any(0)
        recalled += int((squared <= fake_reach).any(1).sum())
    return float(precise.sum()) / len(y), recalled / len(x)
