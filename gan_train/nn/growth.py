"""Progressive growth, for all families that grow: Karras et al. 2017 (arXiv 1710.10196), section 2.

Training starts at a low resolution and doubles it again and again. Each new level is first faded
in, then trained without a fade. All functions here are pure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from gan_train.adversary import Phase, Stage
from gan_train.errors import UserError
from gan_train.nn.layers import downsample, upsample
from gan_train.settings import Length, Resolution

Kimg = Length | dict[Resolution, Length]
"""A length in thousands of images: one for all resolutions, or one for each resolution."""


@dataclass(frozen=True)
class Progress:
    """The state of growth: images have `resolution`, and their newest level has weight `alpha`."""

    resolution: int
    alpha: float


def levels(start: int, resolution: int) -> list[int]:
    """Powers of two from `start` to `resolution`. Raises UserError for any other `start`."""
    if start & (start - 1) or start > resolution:
        raise UserError(
            f"family.start_resolution is {start}; allowed: a power of two from 4 to "
            f"data.resolution ({resolution})"
        )
    return [2**k for k in range(start.bit_length() - 1, resolution.bit_length())]


def images_of(kimg: Kimg, resolution: int) -> int:
    """The number of images that a length means at a resolution. Raises UserError for a dictionary
    without this resolution."""
    if isinstance(kimg, dict):
        if resolution not in kimg:
            raise UserError(f"family: no kimg given for resolution {resolution} in {kimg}")
        kimg = kimg[resolution]
    return round(kimg * 1000)


def growth_stages(
    levels: Sequence[int],
    fade: Kimg,
    stable: Kimg,
    batch: Mapping[int, int],
    default_batch: int,
    rates: Mapping[int, float],
    phases: tuple[Phase, ...],
    milestones_from: int = 0,
) -> tuple[Stage, ...]:
    """A stage for each level and, before all but the first, a stage in which the level fades in.

    `batch` and `rates` hold the global batches and learning rates of levels that have their own.
    Levels from the resolution `milestones_from` on end with a milestone.
    """
    stages = []
    for level in levels:
        alike = partial(
            Stage,
            resolution=level,
            batch=batch.get(level, default_batch),
            phases=phases,
            lr=rates.get(level),
        )
        if level > levels[0]:
            images = images_of(fade, level)
            stages.append(alike(f"{level}-fade", images, fade=True, fresh_optimizers=True))
        milestone = level >= milestones_from
        stages.append(alike(f"{level}", images_of(stable, level), milestone=milestone))
    return tuple(stages)


def progress_at(stages: Sequence[Stage], nimg: int) -> Progress:
    """Resolution and alpha after `nimg` images: alpha rises linearly from 0 to 1 in a fade."""
    start = 0
    for stage in stages:
        if nimg < start + stage.nimg:
            alpha = (nimg - start) / stage.nimg if stage.fade else 1.0
            return Progress(stage.resolution, alpha)
        start += stage.nimg
    return Progress(stages[-1].resolution, 1.0)


def fade_reals(image: Tensor, alpha: float) -> Tensor:
    """Fade the finest level of real images [N, C, H, W] by `alpha`, as fakes have it (figure 2)."""
    if alpha == 1:
        return image
    return torch.lerp(upsample(downsample(image)), image, alpha)
