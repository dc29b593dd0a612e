"""The standard errors of measures, against the deviation among many samples of the same size."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from gan_train.metrics import sliced_wasserstein, taught
from gan_train.metrics.collect import FeatureSet, PixelPairs
from gan_train.metrics.diversity import class_entropy
from gan_train.metrics.estimates import average, of_influences, of_mean
from gan_train.metrics.kid import kernel_distance, kernel_distance_within_classes
from gan_train.metrics.path_length import trimmed_mean
from gan_train.metrics.real import _of_pairs, reference_tensors, unseen_distances
from gan_train.metrics.scores import BLOCKS, Estimate

CPU = torch.device("cpu")
SAMPLES, SIZE, DIMS = 150, 120, 4


def _set(features: Tensor) -> FeatureSet:
    found = FeatureSet(0, len(features), features.shape[1], CPU)
    found.update(torch.arange(len(features)), features, None)
    return found


def _estimates(generator: torch.Generator, real: dict[str, Tensor]) -> dict[str, Estimate]:
    """All that is measured of one sample of a generator that is somewhat wrong."""
    fake = 1.2 * torch.randn(SIZE, DIMS, generator=generator) + 0.3
    labels = torch.arange(SIZE) % 3
    pixels = PixelPairs(SIZE, CPU)
    shades = (128 + 40 * fake).clamp(0, 255).to(torch.uint8).view(SIZE, 1, 2, 2)
    pixels.update(torch.arange(SIZE), shades, labels)
    pair, within = pixels.medians()
    assert pair is not None and within is not None
    of_pairs = _of_pairs(real, fake)
    precision, recall, nearest = of_pairs["precision_recall"]
    density, coverage = of_pairs["density_coverage"]
    sides = real["features"], torch.arange(len(real["features"])) % 3, fake, labels
    shift = torch.eye(3, DIMS)  # by which three classes differ
    apart = real["features"] + shift[sides[1]], sides[1], fake + shift[labels], labels
    return {
        "kid": of_pairs["kid"][0],
        "kid_within_class": kernel_distance_within_classes(*sides),
        "precision": precision,
        "recall": recall,
        "nearest": nearest,
        "density": density,
        "coverage": coverage,
        "memorised": of_pairs["memorisation"][0],
        "sliced_wasserstein": sliced_wasserstein.sliced_wasserstein(real["features"][:SIZE], fake),
        "gan_train_accuracy": taught.taught_accuracy(*apart),
        "pair_distance": pair,
        "pair_distance_within_class": within,
        "class_entropy": class_entropy(
            torch.bincount((fake + torch.arange(DIMS)).argmax(1), minlength=DIMS)
        ),
        "mean": of_mean(fake[:, 0]),
        "trimmed_mean": trimmed_mean(fake[:, 0].exp().double()),
    }


def test_errors_are_those_of_other_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sliced_wasserstein, "DIRECTIONS", 32)
    monkeypatch.setattr(taught, "_RESAMPLED", 5)
    generator = torch.Generator().manual_seed(0)
    real = reference_tensors(_set(torch.randn(150, DIMS, generator=generator)))
    others = torch.randn(SIZE, DIMS, generator=generator)
    real["unseen"] = unseen_distances(real["features"], others)
    found = [_estimates(generator, real) for _ in range(SAMPLES)]
    for name in found[0]:
        told = sum(one[name].error for one in found) / SAMPLES
        true = float(torch.tensor([one[name].value for one in found]).std())
        # that of coverage is known to be too large in few dimensions
        assert told == pytest.approx(true, rel=0.5 if name == "coverage" else 0.3), name


def test_blocks_tell_how_much_two_samples_share() -> None:
    """Two generators of which the second adds noise of its own to the first one's images."""
    generator = torch.Generator().manual_seed(1)
    base = torch.randn(4000, generator=generator)
    near = base + 0.3 * torch.randn(4000, generator=generator)
    far = torch.randn(4000, generator=generator)
    one, two, three = (torch.tensor(of_mean(x).blocks) for x in (base, near, far))
    assert len(one) == BLOCKS
    together = torch.corrcoef(torch.stack([one, two, three]))[0]
    assert together[1] > 0.9 and abs(float(together[2])) < 0.5
    assert float(one.std()) / BLOCKS**0.5 == pytest.approx(of_mean(base).error, rel=0.4)


def test_small_samples_and_averages() -> None:
    assert math.isnan(of_influences(3.0, torch.zeros(1)).error)
    three = of_mean(torch.tensor([1.0, 2.0, 6.0]))
    assert (three.value, len(three.blocks)) == (3.0, 3)
    assert three.error == pytest.approx((7 / 3) ** 0.5)
    both = average([Estimate(1.0, 3.0, (1.0, -1.0)), Estimate(3.0, 4.0, (3.0, -3.0))])
    assert both == Estimate(2.0, 2.5, (2.0, -2.0))
    assert math.isnan(kernel_distance(torch.ones(2, 3), torch.ones(2, 3)).error)
