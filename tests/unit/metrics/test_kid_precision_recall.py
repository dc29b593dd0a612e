"""KID against its definition as a double sum; precision and recall on sets one can draw."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gan_train.metrics import kid, pairs
from gan_train.metrics.kid import shared_classes
from gan_train.metrics.pairs import over_pairs
from gan_train.metrics.precision_recall import Manifolds, Neighbours


def _normal(count: int, dims: int, seed: int) -> Tensor:
    return torch.randn(count, dims, generator=torch.Generator().manual_seed(seed))


def kernel_distance(x: Tensor, y: Tensor) -> float:
    return kid.kernel_distance(x, y).value


def kernel_distance_within_classes(x: Tensor, in_x: Tensor, y: Tensor, in_y: Tensor) -> float:
    return kid.kernel_distance_within_classes(x, in_x, y, in_y).value


def neighbour_distances(x: Tensor) -> Tensor:
    near = Neighbours(x.double())
    over_pairs(x.double(), x.double(), near)
    return near.distances


def _measured(real: Tensor, fake: Tensor) -> tuple[float, float]:
    radii = [neighbour_distances(part)[:, -1] for part in (real, fake)]
    found = Manifolds(real.double(), radii[0], fake.double(), radii[1])
    over_pairs(real.double(), fake.double(), found)
    return found.precision.value, found.recall.value


def test_kid_is_the_unbiased_double_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pairs, "ROWS", 4)  # several blocks
    x, y = _normal(9, 5, 1), _normal(7, 5, 2) + 0.5

    def mean_kernel(a: Tensor, b: Tensor, diagonal: bool) -> float:
        values = [
            (float(a[i].double() @ b[j].double()) / 5 + 1) ** 3
            for i in range(len(a))
            for j in range(len(b))
            if diagonal or i != j
        ]
        return sum(values) / len(values)

    expected = mean_kernel(x, x, False) + mean_kernel(y, y, False) - 2 * mean_kernel(x, y, True)
    assert kernel_distance(x, y) == pytest.approx(expected, rel=1e-10)
    assert kernel_distance(y, x) == pytest.approx(expected, rel=1e-10)


def test_kid_within_classes_is_the_mean_over_those_that_occur_twice() -> None:
    x, y = _normal(9, 5, 1), _normal(8, 5, 2) + 0.5
    in_x, in_y = torch.tensor([0, 1, 0, 1, 2, 3, 2, 1, 4]), torch.tensor([1, 1, 0, 3, 0, 3, 1, 2])
    assert shared_classes(in_x, in_y) == [0, 1]  # one of 2 there, one of 3 here, none of 4 there
    expected = (
        kernel_distance(x[[0, 2]], y[[2, 4]]) + kernel_distance(x[[1, 3, 7]], y[[0, 1, 6]])
    ) / 2
    found = kernel_distance_within_classes(x, in_x, y, in_y)
    assert found == pytest.approx(expected, rel=1e-12)


def test_swapped_classes_show_within_classes_alone() -> None:
    """Two classes two apart, and the same samples under the other's label."""
    labels = torch.arange(200) % 2
    x = _normal(200, 5, 1) + 2 * labels[:, None]
    y = _normal(200, 5, 2) + 2 * labels[:, None]
    right = kernel_distance_within_classes(x, labels, y, labels)
    swapped = kernel_distance_within_classes(x, labels, y, 1 - labels)
    assert abs(kernel_distance(x, y)) < 1 and abs(right) < 1 < 20 < swapped


def test_kid_has_no_bias_with_few_samples() -> None:
    values = torch.tensor(
        [kernel_distance(_normal(20, 8, 2 * s), _normal(20, 8, 2 * s + 1)) for s in range(200)]
    )
    assert values.min() < 0
    assert abs(values.mean()) < 3 * values.std() / 200**0.5


def test_neighbours_of_points_on_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pairs, "ROWS", 2)
    points = torch.tensor([[0.0], [1.0], [3.0], [7.0], [7.0]])
    expected = torch.tensor([[1.0, 3, 7], [1, 2, 6], [2, 3, 4], [0, 4, 6], [0, 4, 6]]).double()
    torch.testing.assert_close(neighbour_distances(points), expected)


def test_precision_and_recall_count_the_points_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Real points 0 to 9 reach 3 at the ends and 2 inside; fakes 8 to 13 likewise."""
    monkeypatch.setattr(pairs, "ROWS", 4)
    real = torch.arange(10.0)[:, None]
    fake = torch.arange(8.0, 14.0)[:, None]
    # fakes 8..12 lie within 3 of real 9; real 5..9 lie within 3 of fake 8
    assert _measured(real, fake) == (5 / 6, 5 / 10)


def test_sets_that_agree_and_sets_far_apart() -> None:
    x = _normal(40, 6, 1)
    assert _measured(x, x.clone()) == (1.0, 1.0)
    assert _measured(x, x + 100) == (0.0, 0.0)


def test_repeated_samples_are_precise_and_recall_nothing() -> None:
    real = _normal(100, 6, 1)
    repeated = real[:5].repeat(20, 1)
    precision, recall = _measured(real, repeated)
    assert precision == 1.0 and recall <= 0.05
    assert neighbour_distances(repeated)[:, 0].median() < 1e-5
