"""Tests the measures themselves: real images are degraded step by step, in five ways.

For each fault and each measure, Spearman's correlation of the measure with the degree says whether
the measure sees that fault. One below `FIT` is named unfit for it. Five degrees reach it only if
each is worse than the one before, or ties with it once.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image, ImageFilter
from torch import Tensor

from gan_train.data.index import Index
from gan_train.metrics.collect import Generate
from gan_train.metrics.evaluator import Evaluator
from gan_train.metrics.real import read_places
from gan_train.metrics.scores import measure, number, scores_of
from gan_train.rng import BatchRandom

log = logging.getLogger(__name__)

DEGREES = 5
"""How many degrees each fault has; the first is no fault at all."""
FIT = 0.95
_BLUR = (0.0, 0.5, 1.0, 1.5, 2.0)  # deviation of the Gaussian, in 32nds of the side
_NOISE = (0, 8, 16, 32, 64)  # deviation, of 255
_KEPT = (1.0, 0.7, 0.5, 0.3, 0.1)  # the share of the classes
_DISTINCT = (1.0, 1 / 4, 1 / 16, 1 / 64, 1 / 256)  # the share of images that are no copies
_POOL, _BATCH = 11, 64  # classes are sought among ten times N images, read some at a time
_MEMORISED = (0.0, 0.1, 0.2, 0.4, 0.8)  # the share of images that are training images


@dataclass(frozen=True)
class Seen:
    """What one measure sees of one fault: its values by degree, and Spearman's correlation of its
    cost with the degree; of its value, without a sign, where neither lower nor higher is better."""

    values: tuple[float, ...]
    correlation: float

    @property
    def fit(self) -> bool:
        """Whether the measure sees this fault."""
        return self.correlation >= FIT


Found = Mapping[str, Mapping[str, Seen]]
"""What was seen, by fault and by the name of the measure."""


def most_images(index: Index) -> int:
    """The largest N that leaves real images to degrade, beside the reference and the null's."""
    return index.samples // 3


def self_test(evaluator: Evaluator, index: Index, directory: Path) -> Found:
    """Score the degraded images. N is the evaluator's, at most `most_images`: images are degraded
    that are neither in the reference nor in the null value."""
    count = evaluator.images
    assert count <= most_images(index)
    faults = _faults(index, directory, count)
    untouched = evaluator.score(_source(index, directory, torch.arange(count) + 2 * count))
    found: dict[str, dict[str, Seen]] = {}
    for fault, degraded in faults.items():
        scored = [untouched]
        for degree in range(1, DEGREES):
            log.info("%s, degree %d of %d", fault, degree, DEGREES - 1)
            scored.append(evaluator.score(degraded(degree)))
        found[fault] = {
            name: _seen(name, [one.get(name, math.nan) for one in scored])
            for name in scores_of(untouched, {})
        }
    return found


def _source(index: Index, directory: Path, chosen: Tensor) -> Generate:
    """A generator that answers with the real images at the chosen places int64 [N], in any
    order."""

    def generate(positions: Tensor) -> tuple[Tensor, Tensor | None]:
        places, back = chosen[positions].unique(return_inverse=True)
        images, labels = read_places(index, directory, places)
        return images[back], None if labels is None else labels[back]

    return generate


def _faults(index: Index, directory: Path, count: int) -> dict[str, Callable[[int], Generate]]:
    """By name, a function from a degree to a generator with that fault."""
    places = torch.arange(count) + 2 * count  # neither reference nor null
    plain = _source(index, directory, places)

    def changed(change: Callable[[Tensor, Tensor], Tensor]) -> Generate:
        def generate(positions: Tensor) -> tuple[Tensor, Tensor | None]:
            images, labels = plain(positions)
            return change(images, positions), labels

        return generate

    def blurred(degree: int) -> Generate:
        radius = _BLUR[degree] * index.resolution / 32
        return changed(lambda images, _: torch.stack([_blur(image, radius) for image in images]))

    def noisy(degree: int) -> Generate:
        def change(images: Tensor, positions: Tensor) -> Tensor:
            noise = BatchRandom(degree, "self-test", positions).normal(*images.shape[1:])
            return (images + _NOISE[degree] * noise).round().clamp(0, 255).to(torch.uint8)

        return changed(change)

    def copied(degree: int) -> Generate:
        distinct = max(1, round(_DISTINCT[degree] * count))
        return _source(index, directory, places[torch.arange(count) % distinct])

    def memorised(degree: int) -> Generate:
        repeats = BatchRandom(0, "self-test", torch.arange(count)).uniform()
        chosen = torch.where(repeats < _MEMORISED[degree], torch.arange(count), places)
        return _source(index, directory, chosen)

    faults: dict[str, Callable[[int], Generate]] = {"blur": blurred, "noise": noisy}
    if len(index.classes) > 1:
        others = torch.arange(count, min(index.samples, _POOL * count))  # none in the reference
        labels = torch.cat(
            [
                labels
                for places in others.split(_BATCH)
                if (labels := read_places(index, directory, places)[1]) is not None
            ]
        )

        def fewer(degree: int) -> Generate:
            kept = max(1, round(_KEPT[degree] * len(index.classes)))
            left = others[labels < kept]
            return _source(index, directory, left[torch.arange(count) % len(left)])

        faults["fewer classes"] = fewer
    return faults | {"copies of a few": copied, "memorised": memorised}


def _blur(image: Tensor, radius: float) -> Tensor:
    """An image uint8 [C, H, W], each channel blurred."""
    channels = [
        torch.frombuffer(
            bytearray(
                Image.fromarray(channel.numpy()).filter(ImageFilter.GaussianBlur(radius)).tobytes()
            ),
            dtype=torch.uint8,
        ).view_as(channel)
        for channel in image
    ]
    return torch.stack(channels)


def _seen(name: str, values: Sequence[float]) -> Seen:
    known = measure(name)
    costs = torch.tensor([known.cost(value) for value in values], dtype=torch.float64)
    found = rank_correlation(torch.arange(len(values)), costs)
    return Seen(tuple(values), abs(found) if known.better is None else found)


def rank_correlation(a: Tensor, b: Tensor) -> float:
    """Spearman's correlation of values [n] and [n], equal ones with the mean of their ranks; 0
    where all are equal."""
    ranks = torch.stack([_ranks(part.double()) for part in (a, b)])
    centred = ranks - ranks.mean(1, keepdim=True)
    spread = centred.square().sum(1).prod().sqrt()
    return float(centred.prod(0).sum() / spread) if spread > 0 else 0.0


def _ranks(values: Tensor) -> Tensor:
    below = (values[None] < values[:, None]).sum(1)
    return below + (values[None] == values[:, None]).sum(1).double() / 2


def table(found: Found, images: int) -> str:
    """The correlations as a table in Markdown: a row a measure, a column a fault, and in brackets
    the values without the fault and at its highest degree."""
    faults = list(found)
    names = list(next(iter(found.values())))
    rows = [f"| N = {images} | {' | '.join(faults)} |", f"|---|{'---|' * len(faults)}"]
    for name in names:
        cells = []
        for fault in faults:
            seen = found[fault][name]
            first, last = number(seen.values[0]), number(seen.values[-1])
            sees = f"{seen.correlation:.2f}" + ("" if seen.fit else " unfit")
            cells.append(f"{sees} ({first} to {last})")
        rows.append(f"| `{name}` | {' | '.join(cells)} |")
    return "\n".join(rows)
