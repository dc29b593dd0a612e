"""Pixel distances, entropy of classes, and the closed-form classifier."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gan_train.metrics import diversity
from gan_train.metrics.collect import PixelPairs, own_positions
from gan_train.metrics.diversity import (
    GROUP,
    LinearDiscriminant,
    class_entropy,
    classify,
    pixel_distances,
)

CPU = torch.device("cpu")


def _images(count: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, 4, 4), dtype=torch.uint8, generator=generator)


def test_pixel_distance_is_euclidean_with_pixels_from_0_to_1(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(diversity, "_PIXELS", 5)
    images = _images(6)
    images[5] = images[0]
    flat = images.flatten(1).double() / 255
    expected = (flat[:, None] - flat).square().sum(2).sqrt()
    torch.testing.assert_close(pixel_distances(images), expected)
    assert pixel_distances(images)[0, 5] == 0
    black_and_white = (
        torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 1, 32, 32)
    )
    assert pixel_distances(black_and_white)[0, 1] == 32


@pytest.mark.parametrize("batch", [1, 7, 100])
@pytest.mark.parametrize("world_size", [1, 3])
def test_medians_depend_on_neither_batch_nor_ranks(batch: int, world_size: int) -> None:
    """2 1/2 groups; ranks are played one after the other into one collection."""
    count = 5 * GROUP // 2
    images, labels = _images(count), torch.arange(count) % 3
    pixels = PixelPairs(count, CPU)
    for rank in range(world_size):
        for positions in own_positions(count, rank, world_size, batch):
            pixels.update(positions, images[positions], labels[positions])
    every, within = [], []
    for start in range(0, count, GROUP):
        part, part_labels = images[start : start + GROUP], labels[start : start + GROUP]
        for i in range(len(part)):
            for j in range(i):
                distance = float((part[i].double() - part[j].double()).norm()) / 255
                every.append(distance)
                within += [distance] if part_labels[i] == part_labels[j] else []
    expected = (float(torch.tensor(part).double().median()) for part in (every, within))
    assert [found and found.value for found in pixels.medians()] == pytest.approx(
        [*expected], rel=1e-6
    )
    assert pixels.labels is not None and torch.equal(pixels.labels, labels)


def test_every_place_is_visited_once() -> None:
    visited = [p for rank in range(3) for p in own_positions(150, rank, 3, 11)]
    assert sorted(torch.cat(visited).tolist()) == list(range(150))
    assert max(len(p) for p in visited) <= 11
    assert list(own_positions(20, 1, 2, 4)) == []  # a rank without work


def test_without_labels_there_is_no_distance_within_classes() -> None:
    pixels = PixelPairs(4, CPU)
    pixels.update(torch.arange(4), _images(4), None)
    every, within = pixels.medians()
    assert every is not None and every.value > 0 and within is None and pixels.labels is None


def test_entropy_of_classes() -> None:
    assert class_entropy(torch.tensor([5, 5, 5, 5])).value == pytest.approx(1)
    assert class_entropy(torch.tensor([9, 0, 0])).value == 0
    assert class_entropy(torch.tensor([8, 8, 0, 0])).value == pytest.approx(0.5)


def test_discriminant_tells_correlated_classes_apart() -> None:
    """Classes that differ along a direction of little variance, which plain means would miss."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 3, (900,), generator=generator)
    x = torch.randn(900, 4, generator=generator)
    x[:, 1] += 10 * x[:, 0]
    x[:, 0] += 0.8 * labels
    x = x * torch.tensor([1.0, 1.0, 1e-3, 1e3]) + 5
    classifier = LinearDiscriminant(4, 3)
    for part, part_labels in zip(x[:600].split(50), labels[:600].split(50), strict=True):
        classifier.update(part, part_labels)
    weights, bias = classifier.fit()
    accuracy = (classify(x[600:], weights, bias) == labels[600:]).double().mean()
    nearest = torch.cdist(
        x[600:], torch.stack([x[:600][labels[:600] == k].mean(0) for k in range(3)])
    )
    assert accuracy > 0.6 > (nearest.argmin(1) == labels[600:]).double().mean() + 0.1


def test_a_class_never_seen_is_never_predicted() -> None:
    classifier = LinearDiscriminant(2, 3)
    classifier.update(torch.tensor([[0.0, 0], [0, 1], [4, 0], [4, 1]]), torch.tensor([0, 0, 2, 2]))
    predicted = classify(torch.tensor([[0.0, 0], [1.9, 0], [4, 0]]), *classifier.fit())
    assert predicted.tolist() == [0, 0, 2]
