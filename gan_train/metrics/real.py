"""Measures the real images, with which generated ones are compared, once for each data set."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from gan_train.data.index import Index
from gan_train.data.loader import read_images
from gan_train.data.order import permutation
from gan_train.metrics import density_coverage
from gan_train.metrics.collect import (
    FeatureSet,
    Job,
    PixelPairs,
    own_positions,
    share_out,
)
from gan_train.metrics.density_coverage import Balls
from gan_train.metrics.diversity import LinearDiscriminant, class_entropy, classify
from gan_train.metrics.estimates import of_median
from gan_train.metrics.extractors import Extractor, ExtractorIdentity
from gan_train.metrics.frechet import (
    covariance_root,
    frechet_estimate,
    frechet_estimate_of_few,
)
from gan_train.metrics.kid import (
    MeanKernel,
    kernel_distance_within_classes,
    kernel_estimate,
    shared_classes,
)
from gan_train.metrics.memorisation import NearestReal, memorised
from gan_train.metrics.pairs import over_pairs
from gan_train.metrics.precision_recall import NEIGHBOURS, Manifolds, Neighbours
from gan_train.metrics.real_cache import RealStatistics
from gan_train.metrics.scores import Estimate, Reference, reference_name
from gan_train.metrics.sliced_wasserstein import sliced_wasserstein
from gan_train.metrics.taught import taught_accuracy
from gan_train.nn.collectives import all_sum

FEATURE_METRICS = (
    *("frechet", "sliced_wasserstein", "kid", "precision_recall", "density_coverage"),
    *("memorisation", "conditional", "gan_train"),
)
"""The metrics that compare features."""
_FITTED = 0.8  # the share of the images that the classifier is fitted to; it is tested on others
_JUDGES = 2000  # at most so many images test it


@dataclass(frozen=True)
class RankShare:
    """This worker's part of the scoring: its rank, its device, and how many images make a batch."""

    rank: int
    world_size: int
    device: torch.device
    batch: int

    def positions(self, count: int) -> list[Tensor]:
        """This rank's places among the first `count` of the sequence, in batches."""
        return list(own_positions(count, self.rank, self.world_size, self.batch))

    def of_jobs(self, jobs: list[Job]) -> dict[str, Estimate]:
        """The estimates of all jobs by name, each computed on one worker. Collective."""
        return share_out(jobs, self.rank, self.world_size, self.device)


def feature_jobs(
    identity: ExtractorIdentity,
    real: dict[str, Tensor],
    fake: FeatureSet,
    wanted: Collection[str] = FEATURE_METRICS,
) -> list[Job]:
    """The jobs that compare features `fake` with real ones by the wanted metrics.

    `real` is what `reference_tensors` gives.
    """
    suffix = identity.suffix
    jobs: list[Job] = []
    if "frechet" in wanted:
        jobs.append(((identity.frechet_name,), lambda: (_frechet(real, fake),)))

    if "sliced_wasserstein" in wanted:
        sets = real["features"], fake.features
        jobs.append(((f"sliced_wasserstein{suffix}",), lambda: (sliced_wasserstein(*sets),)))

    names = {
        "kid": (f"kid{suffix}",),
        "precision_recall": (
            f"precision{suffix}",
            f"recall{suffix}",
            f"nearest_distance{suffix}",
        ),
        "density_coverage": (f"density{suffix}", f"coverage{suffix}"),
        "memorisation": (f"memorised{suffix}", f"memorised_p{suffix}"),
    }
    chosen = [metric for metric in names if metric in wanted]
    if chosen:

        def of_pairs() -> list[Estimate]:
            values = _of_pairs(real, fake.features)
            return [value for metric in chosen for value in values[metric]]

        jobs.append(([name for metric in chosen for name in names[metric]], of_pairs))

    labels = fake.labels
    if labels is None or "labels" not in real:
        return jobs
    sides = real["features"], real["labels"], fake.features, labels
    if "conditional" in wanted and shared_classes(real["labels"], labels):
        jobs.append(
            ((f"kid_within_class{suffix}",), lambda: (kernel_distance_within_classes(*sides),))
        )
    if "gan_train" in wanted and real["labels"].max() > 0:  # there are two classes
        jobs.append(((f"gan_train_accuracy{suffix}",), lambda: (taught_accuracy(*sides),)))
    return jobs


def _frechet(real: dict[str, Tensor], fake: FeatureSet) -> Estimate:
    if "root" not in real:
        return frechet_estimate_of_few(real["features"], fake.features)
    moments, count = fake.moments.mean_and_covariance(), int(fake.moments.count)
    return frechet_estimate(real["mean"], real["root"], *moments, fake.features, count)


def _of_pairs(real: dict[str, Tensor], features: Tensor) -> dict[str, tuple[Estimate, ...]]:
    """The measures that need the inner products of all pairs, by metric."""
    x, y = real["features"].double(), features.double()
    within, near = MeanKernel(y, y), Neighbours(y)
    over_pairs(y, y, within, near)
    distances = near.distances
    across = MeanKernel(x, y)
    manifolds = Manifolds(x, real["radii"], y, distances[:, -1])
    balls = Balls(x, real["wide_radii"], y)
    nearest = NearestReal(x, y, len(real["unseen"]))
    over_pairs(x, y, across, manifolds, balls, nearest)
    return {
        "kid": (kernel_estimate(real["mean_kernel"], within, across),),
        "precision_recall": (
            manifolds.precision,
            manifolds.recall,
            of_median(distances[:, 0]),
        ),
        "density_coverage": (balls.density, balls.coverage),
        "memorisation": memorised(nearest.distances, real["unseen"]),
    }


def unseen_distances(features: Tensor, others: Tensor) -> Tensor:
    """float64 [m]: the distances of other real features [m, D] to the nearest of the first m of
    `features` [n, D], which memorisation is compared with."""
    x, y = features[: len(others)].double(), others.double()
    nearest = NearestReal(x, y, len(x))
    over_pairs(x, y, nearest)
    return nearest.distances


def reference_tensors(features: FeatureSet) -> dict[str, Tensor]:
    """The tensors of the real features that `feature_jobs` needs, by name, beside `unseen`, those
    of `unseen_distances`; all that does not depend on the generated ones is computed here, once.

    The covariance's `root` is there only if there are as many features as dimensions: else the
    Fréchet distance is computed from the features.
    """
    x = features.features.double()
    wide = min(density_coverage.NEIGHBOURS, len(x) - 1)
    kernel, near = MeanKernel(x, x), Neighbours(x, wide)
    over_pairs(x, x, kernel, near)
    found = {
        "features": features.features,
        "radii": near.distances[:, NEIGHBOURS - 1].contiguous(),
        "wide_radii": near.distances[:, -1].contiguous(),
        "mean_kernel": kernel.value,
    }
    if len(x) >= x.shape[1]:
        mean, covariance = features.moments.mean_and_covariance()
        found |= {"mean": mean, "root": covariance_root(covariance)}
    return found if features.labels is None else found | {"labels": features.labels}


def pair_distances(pixels: PixelPairs) -> dict[str, Estimate]:
    """The two medians of `PixelPairs.medians` by name. One that does not exist is left out."""
    every, within = pixels.medians()
    found = {"pair_distance": every, "pair_distance_within_class": within}
    return {name: value for name, value in found.items() if value is not None}


def measure_real(
    index: Index,
    directory: Path,
    images: int,
    null_images: int,
    extractor: Extractor | None,
    share: RankShare,
) -> RealStatistics:
    """Measure the real images in one pass. Collective.

    Generated images are compared with the first `images`; the null value compares the first
    `null_images` with as many after them. Without an extractor only pixels are measured.
    """
    device, classes = share.device, len(index.classes)
    pixels = PixelPairs(images, device)
    if extractor is None:
        for positions in share.positions(images):
            pixels.update(positions, *read_places(index, directory, positions))
        pixels.all_reduce()
        return RealStatistics({}, _named("real", pair_distances(pixels)))

    total = max(images, 2 * null_images)
    reference = FeatureSet(0, images, extractor.dims, device)
    same = null_images == images
    first = reference if same else FeatureSet(0, null_images, extractor.dims, device)
    second = FeatureSet(null_images, 2 * null_images, extractor.dims, device)
    sets = [reference, second] if same else [reference, first, second]
    classifier = _Classifier(total, classes, extractor.layout_dims, device) if classes > 1 else None
    for positions in share.positions(total):
        batch, labels = read_places(index, directory, positions)
        inside = positions < images
        pixels.update(positions[inside], batch[inside], None if labels is None else labels[inside])
        features, layout = extractor.features_and_layout(batch)
        for part in sets:
            part.update(positions, features, labels)
        if classifier is not None and labels is not None:
            classifier.update(positions.to(device), layout, labels.to(device))
    pixels.all_reduce()
    for part in sets:
        part.all_reduce()

    identity = extractor.identity
    tensors = reference_tensors(reference)
    tensors["unseen"] = unseen_distances(tensors["features"], second.features)
    halves = tensors if same else reference_tensors(first) | {"unseen": tensors["unseen"]}
    nulls = share.of_jobs(feature_jobs(identity, halves, second))
    values = _named("real", pair_distances(pixels)) | _named("null", nulls)
    # this is a distance within one set, so its reference is what real images have, not a null value
    nearest = f"nearest_distance{identity.suffix}"
    values[reference_name(nearest, "real")] = values.pop(reference_name(nearest, "null"))
    if classifier is not None:
        fitted, judged = classifier.fit()
        tensors |= fitted
        values |= judged
    return RealStatistics(tensors, values)


def _named(reference: Reference, found: dict[str, Estimate]) -> dict[str, float]:
    """The values under the names of references (`reference_name`)."""
    return {reference_name(name, reference): estimate.value for name, estimate in found.items()}


def read_places(index: Index, directory: Path, positions: Tensor) -> tuple[Tensor, Tensor | None]:
    """Images uint8 [n, C, R, R] and labels int64 [n], or None, at ascending places int64 [n] of the
    order in which real images are compared: `order_in_words`."""
    if not index.additions:
        return _read_ascending(index, directory, positions)
    stored = _mixed(index.samples)[positions]
    ascending = stored.argsort()
    back = ascending.argsort()
    images, labels = _read_ascending(index, directory, stored[ascending])
    return images[back], None if labels is None else labels[back]


def order_in_words(index: Index) -> str:
    """The order in which a data set's real images are compared. It is the stored order, which is a
    random one, unless the set has grown: then the images that came first are stored first."""
    return "a random order" if index.additions else "stored order"


@lru_cache(maxsize=4)
def _mixed(samples: int) -> Tensor:
    """Stored places int64 [samples] in the random order of a set that has grown."""
    return torch.from_numpy(permutation(samples, "real images"))


def _read_ascending(
    index: Index, directory: Path, positions: Tensor
) -> tuple[Tensor, Tensor | None]:
    """The images and labels at ascending stored places. Neighbours are read at once."""
    breaks = (positions.diff() != 1).nonzero()[:, 0] + 1
    runs = torch.tensor_split(positions, breaks.tolist())
    parts = [read_images(index, directory, int(run[0]), len(run)) for run in runs]
    labels = [label for _, label in parts if label is not None]
    return torch.cat([images for images, _ in parts]), torch.cat(labels) if labels else None


class _Classifier:
    """Fits a discriminant to the first images of the sequence, and tests it on the last."""

    def __init__(self, total: int, classes: int, dims: int, device: torch.device) -> None:
        self._border = min(int(_FITTED * total), total - 1)
        self._end = min(total, self._border + _JUDGES)
        self._classes = classes
        self._discriminant = LinearDiscriminant(dims, classes, device)
        self._held_out: list[tuple[Tensor, Tensor]] = []  # this rank's share of the test images

    def update(self, positions: Tensor, layout: Tensor, labels: Tensor) -> None:
        fitted = positions < self._border
        self._discriminant.update(layout[fitted], labels[fitted])
        held_out = (positions >= self._border) & (positions < self._end)
        self._held_out.append((layout[held_out], labels[held_out]))

    def fit(self) -> tuple[dict[str, Tensor], dict[str, float]]:
        """Weights and bias, and the scores of the classifier on test images. Collective."""
        self._discriminant.all_reduce()
        weights, bias = self._discriminant.fit()
        seen = torch.zeros(self._classes, dtype=torch.int64, device=bias.device)
        right = torch.zeros((), dtype=torch.int64, device=bias.device)
        for layout, labels in self._held_out:
            predicted = classify(layout, weights, bias)
            seen += torch.bincount(predicted, minlength=self._classes)
            right += (predicted == labels).sum()
        all_sum(seen)
        all_sum(right)
        values = {
            "class_accuracy": Estimate(float(right) / int(seen.sum())),
            "class_entropy": class_entropy(seen),
        }
        return {"weights": weights, "bias": bias}, _named("real", values)
