"""Gathers the numbers that measures need from a sequence of images, which the workers divide.

The sequence is cut into groups of `GROUP` neighbours, and group g belongs to rank g mod world size.
Everything kept is indexed by the place in the sequence, or is a float64 sum, so neither the batch
nor the number of workers changes the result. Images stay on the worker that made them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from gan_train.metrics.diversity import GROUP, pixel_distances
from gan_train.metrics.frechet import Moments
from gan_train.metrics.scores import BLOCKS, Estimate
from gan_train.nn.collectives import all_sum
from gan_train.rng import BatchRandom

KEPT = 10_000
"""How many features are kept, of the first images. Some measures need them; the Fréchet distance
needs only the moments, which cover all images."""

Generate = Callable[[Tensor], tuple[Tensor, Tensor | None]]
"""A function from places int64 [n] to images uint8 [n, C, R, R] and labels int64 [n] or None."""

Job = tuple[Sequence[str], Callable[[], Sequence[Estimate]]]
"""The names of some measures, and a function that estimates them in this order."""


def share_out(
    jobs: Sequence[Job], rank: int, world_size: int, device: torch.device
) -> dict[str, Estimate]:
    """Compute each job on one worker; all get the same estimates by name, bit for bit.
    Collective."""
    names = [name for job_names, _ in jobs for name in job_names]
    values = torch.zeros(len(names), 2 + BLOCKS, dtype=torch.float64, device=device)
    first = 0
    for number, (job_names, compute) in enumerate(jobs):
        if number % world_size == rank:
            found = torch.tensor([*map(_row, compute())], dtype=torch.float64, device=device)
            values[first : first + len(job_names)] = found
        first += len(job_names)
    all_sum(values)
    return {name: _estimate(row) for name, row in zip(names, values.tolist(), strict=True)}


def _row(estimate: Estimate) -> list[float]:
    """An estimate as 2 + BLOCKS numbers."""
    lacking = [math.nan] * (BLOCKS - len(estimate.blocks))
    return [estimate.value, estimate.error, *estimate.blocks, *lacking]


def _estimate(row: Sequence[float]) -> Estimate:
    """The estimate of which `_row` made these numbers."""
    value, error, *blocks = row
    return Estimate(value, error, tuple(block for block in blocks if not math.isnan(block)))


def own_positions(count: int, rank: int, world_size: int, batch: int) -> Iterator[Tensor]:
    """This rank's places int64 among the first `count` of the sequence, in batches."""
    groups = torch.arange(count).split(GROUP)[rank::world_size]
    if groups:
        yield from torch.cat(groups).split(batch)


def draw_classes(random: BatchRandom, class_counts: Tensor) -> Tensor:
    """Labels int64 [n], drawn as often as the data set has each class (class_counts int64 [K])."""
    place = random.integers(int(class_counts.sum()))
    return torch.searchsorted(class_counts.cumsum(0), place, right=True)


class Labels:
    """The labels of a sequence of images, which may also be unlabelled."""

    def __init__(self, count: int, device: torch.device) -> None:
        self._plus_one = torch.zeros(count, dtype=torch.int64, device=device)  # 0: none

    def update(self, places: Tensor, labels: Tensor) -> None:
        """Set labels int64 [n] at places int64 [n] of the sequence."""
        self._plus_one[places.to(self._plus_one.device)] = labels.to(self._plus_one.device) + 1

    def all_reduce(self) -> None:
        """Sum over all workers: each place is filled on one of them and zero on the others."""
        all_sum(self._plus_one)

    def known(self) -> Tensor | None:
        """The labels int64 [count], or None unless every image has one."""
        return self._plus_one - 1 if bool(self._plus_one.all()) else None


class FeatureSet:
    """The features at the places from `start` to `stop` - 1: the moments of all features, and the
    first `KEPT` features themselves, with their labels if there are any."""

    def __init__(self, start: int, stop: int, dims: int, device: torch.device) -> None:
        self.start, self.stop = start, stop
        self.moments = Moments(dims, device)
        self.features = torch.zeros(min(stop - start, KEPT), dims, device=device)  # [m, D]
        self._labels = Labels(len(self.features), device)

    def update(self, positions: Tensor, features: Tensor, labels: Tensor | None) -> None:
        """Add features [n, D] and labels int64 [n]. Those at positions outside of the span are
        ignored."""
        places = positions.to(features.device) - self.start
        self.moments.update(features[(places >= 0) & (places < self.stop - self.start)])
        kept = (places >= 0) & (places < len(self.features))
        self.features[places[kept]] = features[kept]
        if labels is not None:
            self._labels.update(places[kept], labels.to(places)[kept])

    def all_reduce(self) -> None:
        """Sum over all workers: each place is filled on one of them and zero on the others."""
        self.moments.all_reduce()
        all_sum(self.features)
        self._labels.all_reduce()
        assert int(self.moments.count) == self.stop - self.start

    @property
    def labels(self) -> Tensor | None:
        """The labels int64 [m] of the kept features, or None for unlabelled images."""
        return self._labels.known()


class PixelPairs:
    """The distances of all pairs within each group of images, and the labels of all images."""

    def __init__(self, count: int, device: torch.device) -> None:
        groups = -(-count // GROUP)
        self.distances = torch.zeros(groups, GROUP, GROUP, dtype=torch.float64, device=device)
        self._labels = Labels(count, device)
        self._count = count
        self._waiting: list[Tensor] = []  # images of a group that is not complete yet

    def update(self, positions: Tensor, images: Tensor, labels: Tensor | None) -> None:
        """Add images uint8 [n, C, R, R] at ascending positions int64 [n], with labels int64 [n]. A
        group is measured as soon as it is complete."""
        if labels is not None:
            self._labels.update(positions, labels)
        for position, image in zip(positions.tolist(), images, strict=True):
            if position % GROUP == 0:
                self._waiting = []
            self._waiting.append(image)
            if (position + 1) % GROUP == 0 or position + 1 == self._count:
                size = len(self._waiting)
                distances = pixel_distances(torch.stack(self._waiting))
                self.distances[position // GROUP, :size, :size] = distances.to(self.distances)

    def all_reduce(self) -> None:
        """Sum over all workers: each place is filled on one of them and zero on the others."""
        all_sum(self.distances)
        self._labels.all_reduce()

    @property
    def labels(self) -> Tensor | None:
        """The labels int64 [count] of all images, or None for unlabelled images."""
        return self._labels.known()

    def medians(self) -> tuple[Estimate | None, Estimate | None]:
        """The median distance of all pairs, and the median of the pairs within a class; None in
        place of a median of no pairs. Groups are independent, pairs within one are not: the error
        comes from the medians of the groups."""
        groups = len(self.distances)
        places = torch.arange(groups * GROUP, device=self.distances.device).view(groups, GROUP)
        first, second = torch.triu_indices(GROUP, GROUP, offset=1, device=places.device)
        valid = places[:, second] < self._count  # [groups, pairs]
        distances = self.distances[:, first, second]
        labels = self.labels
        same = torch.zeros_like(valid)
        if labels is not None:
            padded = F.pad(labels, (0, groups * GROUP - self._count)).view(groups, GROUP)
            same = valid & (padded[:, first] == padded[:, second])
        return _median(distances, valid), _median(distances, same)


def _median(distances: Tensor, valid: Tensor) -> Estimate | None:
    """The median of the valid ones of distances [groups, pairs]."""
    if not valid.any():
        return None
    value = float(distances[valid].median())
    found = [
        group[which].median() for group, which in zip(distances, valid, strict=True) if which.any()
    ]
    if len(found) < 2:
        return Estimate(value)
    return Estimate(value, float(torch.stack(found).std()) / math.sqrt(len(found)))
