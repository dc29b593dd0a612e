"""Density and coverage, sliced Wasserstein, GAN-train and memorisation, each against its formula or
another implementation."""

from __future__ import annotations

import pytest
import torch
from scipy import stats
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from gan_train.metrics import pairs, sliced_wasserstein
from gan_train.metrics.density_coverage import Balls
from gan_train.metrics.memorisation import NearestReal, memorised
from gan_train.metrics.pairs import over_pairs
from gan_train.metrics.precision_recall import Neighbours
from gan_train.metrics.taught import taught_accuracy


def _normal(count: int, dims: int, seed: int) -> Tensor:
    found = torch.randn(count, dims, generator=torch.Generator().manual_seed(seed))
    return found.double()


def _balls(real: Tensor, fake: Tensor) -> tuple[float, float]:
    near = Neighbours(real, min(5, len(real) - 1))
    over_pairs(real, real, near)
    found = Balls(real, near.distances[:, -1], fake)
    over_pairs(real, fake, found)
    return found.density.value, found.coverage.value


def test_density_and_coverage_count_balls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Real points 0 to 9: the fifth neighbour is 5, 4, 3, 3, 3, 3, 3, 3, 4, 5 away."""
    monkeypatch.setattr(pairs, "ROWS", 4)
    real = torch.arange(10.0).double()[:, None]
    fake = torch.tensor([[4.5], [13.0], [40.0]]).double()
    # 13 lies in the ball of 9 alone, 40 in none
    inside = sum(abs(4.5 - x) <= r for x, r in enumerate([5, 4, 3, 3, 3, 3, 3, 3, 4, 5]))
    assert _balls(real, fake) == ((inside + 1) / 5 / 3, inside / 10)
    assert _balls(real, fake[1:]) == (1 / 5 / 2, 1 / 10)


def test_coverage_of_equal_sets_is_the_papers() -> None:
    """Lemma 2: 1 - (1 / 2)^k for many samples; density is 1."""
    density, coverage = _balls(_normal(1000, 8, 1), _normal(1000, 8, 2))
    assert coverage == pytest.approx(1 - 0.5**5, abs=0.02)
    assert density == pytest.approx(1, abs=0.1)


def test_an_outlier_counts_less_than_for_precision() -> None:
    """One real image far off has a ball that reaches all fakes; density hardly sees it."""
    real = torch.cat([_normal(200, 3, 1), torch.full((1, 3), 30.0).double()])
    fake = _normal(200, 3, 2) + 15
    assert _balls(real, fake)[0] < 0.25


def test_sliced_wasserstein_is_scipys_along_each_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sliced_wasserstein, "DIRECTIONS", 20)
    monkeypatch.setattr(sliced_wasserstein, "_AT_ONCE", 7)
    x, y = _normal(50, 4, 1), 2 * _normal(50, 4, 2) + 1
    lines = sliced_wasserstein.directions(4, torch.device("cpu"))
    torch.testing.assert_close(lines.square().sum(1), torch.ones(20).double())
    expected = 0.0
    for line in lines:
        a, b = (x @ line)[:, None].numpy(), (y @ line)[:, None].numpy()
        costs = (a - b.T) ** 2
        rows, columns = linear_sum_assignment(costs)
        expected += 4 * costs[rows, columns].mean() / 20
    found = sliced_wasserstein.sliced_wasserstein(x, y).value
    assert found == pytest.approx(expected, rel=1e-9)


def test_a_shift_costs_its_square() -> None:
    x = _normal(300, 16, 1)
    found = sliced_wasserstein.sliced_wasserstein(x, x + 0.5).value
    assert found == pytest.approx(16 * 0.25, rel=0.15)  # by the directions that were drawn
    assert sliced_wasserstein.sliced_wasserstein(x, x.flip(0)).value == pytest.approx(0, abs=1e-12)


def test_gan_train_falls_with_wrong_classes_and_with_repetition() -> None:
    labels = torch.arange(300) % 3
    centres = 2.0 * torch.eye(3, 40).double()

    def drawn(seed: int) -> Tensor:
        return _normal(300, 40, seed) + centres[labels]

    real, good = drawn(1), drawn(2)
    repeated = good[:6].repeat(50, 1)
    half_wrong = torch.where(torch.arange(300) % 2 == 0, labels, (labels + 1) % 3)
    fair = taught_accuracy(real, labels, good, labels)
    assert fair.value > 0.75 and 0 < fair.error < 0.1
    assert taught_accuracy(real, labels, repeated, labels).value < fair.value - 0.1
    assert taught_accuracy(real, labels, good, half_wrong).value < fair.value - 0.1
    assert taught_accuracy(real, labels, good, (labels + 1) % 3).value < 0.2


def test_the_nearest_are_found_among_those_that_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pairs, "ROWS", 2)
    x = torch.tensor([[0.0], [10.0], [20.0], [5.0], [21.0]]).double()
    y = torch.tensor([[19.0], [4.0], [21.0]]).double()
    for among, places, distances in ((3, [2, 0, 2], [1, 4, 1]), (5, [2, 3, 4], [1, 1, 0])):
        nearest = NearestReal(x, y, among)
        over_pairs(x, y, nearest)
        assert nearest.places.tolist() == places and nearest.distances.tolist() == distances


@pytest.mark.parametrize("scale", [1.0, 10.0, 1e6])
def test_memorisation_is_the_test_of_mann_and_whitney(scale: float) -> None:
    """With many ties, few, and none."""
    samples, unseen = _normal(80, 1, 1)[:, 0].abs(), _normal(60, 1, 2)[:, 0].abs() + 0.3
    samples, unseen = (part.mul(scale).round() for part in (samples, unseen))
    chance, p = memorised(samples, unseen)
    there = stats.mannwhitneyu(
        samples.numpy(), unseen.numpy(), alternative="less", method="asymptotic"
    )
    assert p.value == pytest.approx(there.pvalue, rel=1e-6)
    assert chance.value == pytest.approx(1 - there.statistic / (80 * 60), rel=1e-12)


def test_copies_are_told_from_luck() -> None:
    unseen = _normal(400, 1, 1)[:, 0].abs() + 1
    fair, copied = _normal(400, 1, 2)[:, 0].abs() + 1, _normal(400, 1, 3)[:, 0].abs() + 1
    copied[:60] = 0  # 15% are copies
    assert memorised(fair, unseen)[1].value > 0.05
    assert memorised(copied, unseen)[1].value < 1e-3
    assert memorised(torch.ones(4), torch.ones(4))[1].value == 1
