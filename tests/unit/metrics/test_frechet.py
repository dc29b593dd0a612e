"""The Fréchet distance against closed forms and SciPy's matrix square root."""

from __future__ import annotations

import pytest
import scipy.linalg
import torch
from torch import Tensor

from gan_train.metrics.frechet import (
    Moments,
    covariance_root,
    frechet_estimate,
    frechet_estimate_of_few,
)
from gan_train.metrics.scores import Estimate


def _moments(x: Tensor, batch: int = 7) -> tuple[Tensor, Tensor]:
    moments = Moments(x.shape[1])
    for part in x.split(batch):
        moments.update(part)
    return moments.mean_and_covariance()


def _correlated(count: int, dims: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(dims, dims, generator=generator, dtype=torch.float64)
    return torch.randn(count, dims, generator=generator, dtype=torch.float64) @ mix + seed


def frechet_distance(mean1: Tensor, cov1: Tensor, mean2: Tensor, cov2: Tensor) -> float:
    none = torch.zeros(0, len(mean2))
    return frechet_estimate(mean1, covariance_root(cov1), mean2, cov2, none, 0).value


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
    assert frechet_estimate_of_few(x, y).value == pytest.approx(general, rel=1e-6)


def test_float32_is_refused() -> None:
    mean, covariance = torch.zeros(2), torch.eye(2)
    with pytest.raises(AssertionError, match="float64"):
        frechet_distance(mean, covariance, mean, covariance)


def test_both_forms_have_the_same_influences() -> None:
    x, y = _correlated(40, 24, 4), _correlated(50, 24, 5)
    mean, covariance = _moments(x)
    general = frechet_estimate(mean, covariance_root(covariance), *_moments(y), y, len(y))
    few = frechet_estimate_of_few(x, y)
    assert general.error == pytest.approx(few.error, rel=1e-6) and few.error > 0
    assert general.blocks == pytest.approx(few.blocks, rel=1e-5)
    # known of the first samples alone: the error of all
    part = frechet_estimate(mean, covariance_root(covariance), *_moments(y), y[:25], len(y))
    assert part.error == pytest.approx(few.error, rel=0.5)


def test_the_error_is_that_of_other_samples() -> None:
    """Against 400 other samples of the same size, and against a bootstrap of one sample."""
    reference, generator = _correlated(300, 5, 6), torch.Generator().manual_seed(8)
    mean, covariance = _moments(reference)
    root = covariance_root(covariance)
    mix = torch.randn(5, 5, generator=generator, dtype=torch.float64)

    def found(y: Tensor) -> Estimate:
        return frechet_estimate(mean, root, *_moments(y, 300), y, len(y))

    samples = [
        torch.randn(300, 5, generator=generator, dtype=torch.float64) @ mix + 7 for _ in range(400)
    ]
    others = torch.tensor([found(y).value for y in samples])
    errors = torch.tensor([found(y).error for y in samples[:20]])
    assert float(errors.mean()) == pytest.approx(float(others.std()), rel=0.12)
    again = [samples[0][torch.randint(300, (300,), generator=generator)] for _ in range(400)]
    bootstrap = torch.tensor([found(y).value for y in again])
    assert found(samples[0]).error == pytest.approx(float(bootstrap.std()), rel=0.12)
