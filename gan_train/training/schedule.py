"""The schedule of training: pure functions of the number of images that were trained on."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from gan_train.adversary import Adversary, ImageShape, Stage
from gan_train.config import Config
from gan_train.data.feed import check_data
from gan_train.data.order import check_split
from gan_train.errors import UserError
from gan_train.nn.batchnorm import BatchNorm

MOST_CHECKPOINTS = 10_000
"""Of one run."""


def schedule_end(config: Config, stages: Sequence[Stage]) -> int:
    """The number of images after which training ends, by `train.total_kimg` or by the stages."""
    if config.train.total_kimg is not None:
        return round(config.train.total_kimg * 1000)
    return sum(stage.nimg for stage in stages)


def stage_at(stages: Sequence[Stage], nimg: int, end: int) -> tuple[Stage, int]:
    """The stage in which image number `nimg` falls, and the number of images at which it ends. The
    last stage ends where training does."""
    stop = 0
    for stage in stages:
        stop += stage.nimg
        if nimg < stop:
            return stage, min(stop, end)
    return stages[-1], end


def crossed(before: int, now: int, every_kimg: float) -> bool:
    """Whether a multiple of `every_kimg` lies in (before, now]."""
    every = every_kimg * 1000
    return int(now / every) > int(before / every)


def checkpoints(config: Config, stages: Sequence[Stage], end: int) -> list[int]:
    """The numbers of images seen at which a whole run writes checkpoints. The trainer writes them
    after the batch that reaches such a number, which may be a few images later."""
    every = config.train.checkpoint_kimg
    places, start = set(), 0
    while start < end:
        stage, until = stage_at(stages, start, end)
        if stage.milestone or until >= end or crossed(until - 1, until, every):
            places.add(until)
        start = until
    regular = int(every * 1000)
    return sorted(places | set(range(regular, end, regular)))


def check(config: Config, shape: ImageShape, world_size: int) -> tuple[Stage, ...]:
    """The stages of training with this configuration on images of this shape.

    Call it before training. Raises UserError if resolution, data, moving average, batch or number
    of workers do not fit together.
    """
    if shape.resolution != config.data.resolution:
        raise UserError(
            f"data.resolution={config.data.resolution}: the shards hold {shape.resolution} px "
            "images; shard again"
        )
    adversary = _networks(config, shape)
    check_split_of(config, adversary, world_size)
    return adversary.stages()


_SCALES = (Tensor.mul, Tensor.__mul__, Tensor.div, Tensor.__truediv__)


class _ShapesAlone(TorchFunctionMode):
    """Leaves out what changes no shape, such as drawing initial weights: for tensors without
    memory, PyTorch would import for seconds what it needs for it."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func in (Tensor.normal_, nn.init.normal_):
            return args[0] if args else kwargs["tensor"]
        if func in _SCALES and len(args) == 2 and not isinstance(args[1], Tensor):
            return args[0]
        if func in (torch.randn, torch.rand):
            func = torch.empty
        return func(*args, **(kwargs or {}))


def _networks(config: Config, shape: ImageShape) -> Adversary:
    """The networks without memory for their weights. Raises UserError where settings do not fit
    together, whatever the number of workers."""
    with torch.device("meta"), _ShapesAlone():
        adversary = config.family.build(shape, config.train.batch)
    check_memory(config, adversary)
    check_data(config.data, adversary)
    check_average(config, adversary)
    check_checkpoints(config, adversary.stages())
    return adversary


def check_split_of(config: Config, adversary: Adversary, world_size: int) -> None:
    """Raise UserError if so many workers cannot share the batch of every stage evenly."""
    for stage in adversary.stages():
        check_split(
            lanes=config.data.lanes,
            grain=adversary.grain * config.train.accumulate,
            world_size=world_size,
            batch=stage.batch,
        )


def world_sizes(config: Config, shape: ImageShape) -> list[int]:
    """The numbers of workers that `cluster` allows and that can train with this configuration,
    ascending. Without `cluster.max_workers` there is one.

    Raises the UserError of the first number if there is none.
    """
    cluster, adversary = config.cluster, _networks(config, shape)
    found, first = [], None
    for number in range(cluster.workers, (cluster.max_workers or cluster.workers) + 1):
        try:
            check_split_of(config, adversary, number)
        except UserError as error:
            first = first or error
        else:
            found.append(number)
    if not found:
        assert first is not None, "there is a first number"
        raise first
    return found


def check_memory(config: Config, adversary: Adversary) -> None:
    """Raise UserError for networks that this machine's memory cannot hold. Where it trains itself,
    it holds gradients and Adam's two moments beside the weights."""
    weights = sum(p.numel() * p.element_size() for p in adversary.parameters())
    elsewhere = config.cluster.address is not None or config.cluster.jobs is not None
    needed = weights if elsewhere else 4 * weights
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > memory:
        raise UserError(
            f"family: the networks have {weights / 1e9:,.1f} GB of weights and need "
            f"{needed / 1e9:,.1f} GB of memory; this machine has {memory / 1e9:,.1f} GB: make the "
            "widths or the depth of `family` smaller"
        )


def check_checkpoints(config: Config, stages: Sequence[Stage]) -> None:
    """Raise UserError for a schedule without images, or with too many checkpoints to list."""
    end = schedule_end(config, stages)
    if end < 1:
        raise UserError(
            "the schedule shows no image; set train.total_kimg, or the lengths of `family`, to "
            "0.001 or more"
        )
    count = end / (config.train.checkpoint_kimg * 1000)
    if count > MOST_CHECKPOINTS:
        raise UserError(
            f"train.checkpoint_kimg={config.train.checkpoint_kimg:g}: {count:.0f} checkpoints "
            f"until {end / 1000:g} kimg; allowed: at most {MOST_CHECKPOINTS}"
        )


def check_average(config: Config, adversary: Adversary) -> None:
    """Raise UserError for a moving average of networks with batch normalisation: its running
    statistics belong to the trained weights, and do not fit averaged ones."""
    layers = (m for name in adversary.averaged for m in getattr(adversary, name).modules())
    if config.train.ema_kimg > 0 and any(isinstance(layer, BatchNorm) for layer in layers):
        raise UserError(
            f"train.ema_kimg={config.train.ema_kimg:g}: {config.family.name} normalises by running "
            "statistics, which fit the weights as trained and no average of them; set "
            "train.ema_kimg to 0"
        )
