"""The Fréchet distance against closed forms and SciPy's matrix square root."""

from __future__ import annotations

import pytest
import scipy.linalg
import torch
from torch import Tensor

from gan_train.metrics.frechet import Moments, frechet_distance, frechet_distance_of_few


def _moments(x: Tensor, batch: int = 7) -> tuple[Tensor, Tensor]:
    moments = Moments(x.shape[1])
    for part in x.split(batch):
        moments.update(part)
    return moments.mean_and_covariance()


def _correlated(count: int, dims: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(dims, dims, generator=generator, dtype=torch.float64)
    return torch.randn(count, dims, generator=generator, dtype=torch.float64) @ mix + seed


def test_moments_are_mean_and_unbiased_covariance() -> None:
    x = _correlated(50, 6, 1)
    mean, covariance = _moments(x)
    torch.testing.assert_close(mean, x.mean(0))
    torch.testing.assert_close(covariance, torch.cov(x.T))


def test_diagonal_gaussians_have_the_textbook_distance() -> None:
    """|mu1 - mu2|^2 + sum (s1 - s2)^2."""
    mean1, mean2 = torch.tensor([1.0, 2.0, 3.0]).double(), torch.tensor([1.0, 0.0, 6.0]).double()
    deviation1, deviation2 = torch.tensor([1.0, 2.0, 0.0]), torch.tensor([3.0, 0.5, 2.0])
    distance = frechet_distance(
        mean1, deviation1.double().square().diag(), mean2, deviation2.double().square().diag()
    )
    assert distance == pytest.approx(13 + 4 + 2.25 + 4, abs=1e-12)


def test_full_covariances_agree_with_scipy() -> None:
    (mean1, cov1), (mean2, cov2) = (
        _moments(_correlated(80, 20, 1)),
        _moments(_correlated(90, 20, 2)),
    )
    root = scipy.linalg.sqrtm(cov1.numpy() @ cov2.numpy())
    expected = (mean1 - mean2).square().sum() + cov1.trace() + cov2.trace()
    distance = frechet_distance(mean1, cov1, mean2, cov2)
    assert distance == pytest.approx(float(expected) - 2 * root.trace().real, rel=1e-9)
    assert distance == pytest.approx(frechet_distance(mean2, cov2, mean1, cov1), rel=1e-9)


def test_a_set_has_no_distance_to_itself() -> None:
    mean, covariance = _moments(_correlated(80, 20, 3))
    distance = frechet_distance(mean, covariance, mean, covariance)
    assert abs(distance) < 1e-10 * float(covariance.trace())  # its terms are of the trace's size


@pytest.mark.parametrize("counts", [(8, 11), (30, 12), (40, 50)])
def test_form_for_few_samples_is_the_same_distance(counts: tuple[int, int]) -> None:
    x, y = _correlated(counts[0], 24, 4), _correlated(counts[1], 24, 5)
    general = frechet_distance(*_moments(x), *_moments(y))
    assert frechet_distance_of_few(x, y) == pytest.approx(general, rel=1e-6)


def test_float32_is_refused() -> None:
    mean, covariance = torch.zeros(2), torch.eye(2)
    with pytest.raises(AssertionError, match="float64"):
        frechet_distance(mean, covariance, mean, covariance)
