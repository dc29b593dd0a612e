"""Fréchet distance between Gaussians fitted to two sets of features.

Dowson and Landau 1982; used to score generators by Heusel et al. 2017, "GANs Trained by a Two
Time-Scale Update Rule Converge to a Local Nash Equilibrium", equation 6. Pure functions and one
accumulator, all in float64: in float32 the matrix square root makes errors of whole points.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gan_train.nn.collectives import all_sum


class Moments:
    """Count, sum and second moment of features, added up over batches and over workers.

    Only these sums [D] and [D, D] are exchanged between workers, never images. As they are float64,
    the result is the same, to rounding, for any batch and any number of workers.
    """

    def __init__(self, dims: int, device: torch.device | str = "cpu") -> None:
        self.count = torch.zeros((), dtype=torch.int64, device=device)
        self.total = torch.zeros(dims, dtype=torch.float64, device=device)  # [D]
        self.outer = torch.zeros(dims, dims, dtype=torch.float64, device=device)  # [D, D]

    def update(self, features: Tensor) -> None:
        """Add features [n, D]."""
        x = features.to(self.total)
        self.count += len(x)
        self.total += x.sum(0)
        self.outer.addmm_(x.T, x)

    def all_reduce(self) -> None:
        """Sum over all workers."""
        for part in (self.count, self.total, self.outer):
            all_sum(part)

    def mean_and_covariance(self) -> tuple[Tensor, Tensor]:
        """Mean [D] and unbiased covariance [D, D] of at least two features."""
        count = int(self.count)
        assert count >= 2, f"a covariance needs two samples, there are {count}"
        mean = self.total / count
        return mean, (self.outer - count * torch.outer(mean, mean)) / (count - 1)


def frechet_distance(mean1: Tensor, cov1: Tensor, mean2: Tensor, cov2: Tensor) -> float:
    """|mu1 - mu2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)), from means [D] and covariances [D, D]."""
    return frechet_distance_to_root(mean1, covariance_root(cov1), mean2, cov2)


def covariance_root(covariance: Tensor) -> Tensor:
    """The symmetric square root [D, D] of a covariance [D, D]. Eigenvalues that rounding made
    negative count as 0."""
    assert covariance.dtype == torch.float64, "the distance needs float64"
    # on the CPU by LAPACK, not cuSOLVER: covariances of few samples have many eigenvalues near zero
    values, vectors = torch.linalg.eigh(covariance.cpu())
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    return root.to(covariance.device)


def frechet_distance_to_root(mean1: Tensor, root1: Tensor, mean2: Tensor, cov2: Tensor) -> float:
    """`frechet_distance`, from the root of the first covariance: it may be computed once for many
    distances, and takes most of the time.

    C1 C2 is not symmetric, but it has the eigenvalues of S C2 S with S = C1^(1/2), which is
    symmetric. So only symmetric eigenproblems are solved, without complex numbers.
    """
    assert root1.dtype == cov2.dtype == torch.float64, "the distance needs float64"
    mean1, root1, mean2, cov2 = (part.cpu() for part in (mean1, root1, mean2, cov2))
    cross = torch.linalg.eigvalsh(root1 @ cov2 @ root1).clamp(min=0).sqrt().sum()
    squared = (mean1 - mean2).square().sum()
    return float(squared + root1.square().sum() + cov2.trace() - 2 * cross)


def frechet_distance_of_few(features1: Tensor, features2: Tensor) -> float:
    """`frechet_distance` computed from features [n, D] and [m, D]: exact, and cheap for n, m < D.

    With X and Y centred, tr (C1 C2)^(1/2) is the sum of the singular values of X Y^T, which is
    only [n, m], over sqrt((n - 1)(m - 1)).
    """
    x, y = features1.cpu().double(), features2.cpu().double()
    assert len(x) >= 2 and len(y) >= 2, "a covariance needs two samples"
    mean1, mean2 = x.mean(0), y.mean(0)
    x, y = (x - mean1) / (len(x) - 1) ** 0.5, (y - mean2) / (len(y) - 1) ** 0.5
    cross = torch.linalg.svdvals(x @ y.T).sum()
    squared = (mean1 - mean2).square().sum()
    return float(squared + x.square().sum() + y.square().sum() - 2 * cross)
