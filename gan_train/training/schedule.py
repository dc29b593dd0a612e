"""The schedule of training: pure functions of the number of images that were trained on."""

from __future__ import annotations

from collections.abc import Sequence

from gan_train.adversary import Adversary, ImageShape, Stage
from gan_train.config import Config
from gan_train.data.feed import check_data
from gan_train.data.order import check_split
from gan_train.errors import UserError
from gan_train.nn.batchnorm import BatchNorm


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
    adversary = config.family.build(shape, config.train.batch)
    check_data(config.data, adversary)
    check_average(config, adversary)
    stages = adversary.stages()
    for stage in stages:
        check_split(
            lanes=config.data.lanes,
            grain=adversary.grain * config.train.accumulate,
            world_size=world_size,
            batch=stage.batch,
        )
    return stages


def world_sizes(config: Config, shape: ImageShape) -> list[int]:
    """The numbers of workers that `cluster` allows and that can train with this configuration,
    ascending. Without `cluster.max_workers` there is one.

    Raises the UserError of the first number if there is none.
    """
    cluster = config.cluster
    found, first = [], None
    for number in range(cluster.workers, (cluster.max_workers or cluster.workers) + 1):
        try:
            check(config, shape, number)
        except UserError as error:
            first = first or error
        else:
            found.append(number)
    if not found:
        assert first is not None, "there is a first number"
        raise first
    return found


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
