"""Fréchet distance between Gaussians fitted to two sets of features.

Dowson and Landau 1982; used to score generators by Heusel et al. 2017, "GANs Trained by a Two
Time-Scale Update Rule Converge to a Local Nash Equilibrium", equation 6. Pure functions and one
accumulator, all in float64: in float32 the matrix square root makes errors of whole points.

The error of a distance comes from the distance's derivative by the moments of the second set. That
of tr (S C S)^(1/2) by C is S (S C S)^(-1/2) S / 2, so a sample whose difference from the mean is d
has, up to a constant, the influence

    2 (mu2 - mu1) d + d (1 - T) d,    T = S (S C2 S)^(-1/2) S,    S = C1^(1/2)

T maps the second Gaussian to the first. The first set is taken as it is: it is the same for all
that are compared with it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gan_train.metrics.estimates import of_influences
from gan_train.metrics.scores import Estimate
from gan_train.nn.collectives import all_sum

_LEAST_SHARE = 1e-12  # eigenvalues below this share of the largest are rounding


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


def covariance_root(covariance: Tensor) -> Tensor:
    """The symmetric square root [D, D] of a covariance [D, D]. Eigenvalues that rounding made
    negative count as 0."""
    assert covariance.dtype == torch.float64, "the distance needs float64"
    # on the CPU by LAPACK, not cuSOLVER: covariances of few samples have many eigenvalues near zero
    values, vectors = torch.linalg.eigh(covariance.cpu())
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    return root.to(covariance.device)


def frechet_estimate(
    mean1: Tensor, root1: Tensor, mean2: Tensor, cov2: Tensor, features2: Tensor, count: int
) -> Estimate:
    """|mu1 - mu2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)) with its standard error over samples of the
    second set, from means [D], the root [D, D] of the first covariance, and the second covariance.

    The root may be computed once for many distances, and takes most of the time. `count` is the
    number of samples of the second set, of which features2 [n, D] are the first.

    C1 C2 is not symmetric, but it has the eigenvalues of S C2 S with S = C1^(1/2), which is
    symmetric. So only symmetric eigenproblems are solved, without complex numbers.
    """
    assert root1.dtype == cov2.dtype == torch.float64, "the distance needs float64"
    mean1, root1, mean2, cov2 = (part.cpu() for part in (mean1, root1, mean2, cov2))
    values, vectors = torch.linalg.eigh(root1 @ cov2 @ root1)
    spread = values.clamp(min=0).sqrt()
    apart = mean2 - mean1
    distance = float(apart.square().sum() + root1.square().sum() + cov2.trace() - 2 * spread.sum())
    d = features2.cpu().double() - mean2  # [n, D]
    known = values > values[-1] * _LEAST_SHARE
    across = (d @ (root1 @ vectors[:, known])).square() / spread[known]  # d T d, term by term
    return of_influences(distance, 2 * d @ apart + d.square().sum(1) - across.sum(1), count)


def frechet_estimate_of_few(features1: Tensor, features2: Tensor) -> Estimate:
    """`frechet_estimate` computed from features [n, D] and [m, D]: exact, and cheap for n, m < D.

    With X and Y centred, tr (C1 C2)^(1/2) is the sum of the singular values of X Y^T = U s V^T,
    which is only [n, m], over sqrt((n - 1)(m - 1)). A row d of Y has d T d = its sum of s V^2.
    """
    x, y = features1.cpu().double(), features2.cpu().double()
    assert len(x) >= 2 and len(y) >= 2, "a covariance needs two samples"
    mean1, mean2 = x.mean(0), y.mean(0)
    x, y = (x - mean1) / (len(x) - 1) ** 0.5, (y - mean2) / (len(y) - 1) ** 0.5
    _, spread, right = torch.linalg.svd(x @ y.T, full_matrices=False)
    apart = mean2 - mean1
    distance = apart.square().sum() + x.square().sum() + y.square().sum() - 2 * spread.sum()
    scale = len(y) - 1
    quadratic = scale * (y.square().sum(1) - (spread[:, None] * right.square()).sum(0))
    return of_influences(float(distance), 2 * scale**0.5 * y @ apart + quadratic)
