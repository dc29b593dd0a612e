"""How a measure gets its standard error: from the influence of each image on the value.

On another sample of the same size a value differs, to first order, by the mean of its images'
influences (the infinitesimal jackknife: Jaeckel 1972, Efron 1982). So one sample tells how far
another one would move the value, and no image is made or measured twice. A measure computes the
influences in its own file, where its formula stands, and gives an `Estimate` for its value. Those
of two generators at the same places of the sequence belong together: by them `promote` sees how
much of the error two versions share. Pure functions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from gan_train.metrics.scores import BLOCKS, Estimate


def of_influences(value: float, influences: Tensor, count: int | None = None) -> Estimate:
    """The estimate `value`, where influences [n] belong to the images of a sequence in its order.
    Their mean does not matter. `count` is the number of images that the value was measured on,
    where only the first n of them have an influence here."""
    phi = influences.double()
    if len(phi) < 2:
        return Estimate(value)
    error = float(phi.std()) / math.sqrt(count or len(phi))
    means = torch.stack([part.mean() for part in phi.tensor_split(min(BLOCKS, len(phi)))])
    return Estimate(value, error, tuple((means - phi.mean()).tolist()))


def of_mean(values: Tensor) -> Estimate:
    """The mean of values [n], one an image."""
    return of_influences(float(values.double().mean()), values)


def of_median(values: Tensor) -> Estimate:
    """The median of values [n], one an image. Its error is half the distance of the two order
    statistics that enclose it with a probability of 68% whatever the distribution is: those by
    sqrt(n) / 2 places below and above."""
    ordered, n = values.double().sort().values, len(values)
    half = math.sqrt(n) / 2
    low, high = max(0, math.floor(n / 2 - half)), min(n - 1, math.ceil(n / 2 + half))
    return Estimate(float(values.median()), float(ordered[high] - ordered[low]) / 2)


def of_left_out(value: float, without: Tensor) -> Estimate:
    """The estimate `value`, where without [b] are the values that remain when one block of the
    images at a time is left out (the block jackknife: Künsch 1989)."""
    blocks = len(without)
    return of_influences(value, (blocks - 1) * (without.double().mean() - without.double()))


def average(estimates: Sequence[Estimate]) -> Estimate:
    """The mean of estimates that were measured independently, such as the two directions of a
    translation."""
    count = len(estimates)
    blocks = [estimate.blocks for estimate in estimates]
    together: tuple[float, ...] = ()
    if all(blocks) and len({len(block) for block in blocks}) == 1:
        together = tuple(sum(parts) / count for parts in zip(*blocks, strict=True))
    return Estimate(
        sum(estimate.value for estimate in estimates) / count,
        math.sqrt(sum(estimate.error**2 for estimate in estimates)) / count,
        together,
    )
