"""Predicts how long a run takes and how much memory its workers need, and fits its schedule to a
time.

A rehearsal (`gan_train/bench/rehearsal.py`) measures on this machine what an image costs in each
stage and in scoring. The rest of a prediction is arithmetic on the schedule, and a few constants,
which were measured once (docs/benchmarks.md).
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from gan_train import recipes
from gan_train.adversary import Generates, ImageShape, Stage, task_of
from gan_train.bench.counting import count, estimate
from gan_train.bench.rehearsal import Rehearsed, rehearse
from gan_train.config import Config
from gan_train.data.index import INDEX_NAME, Index
from gan_train.data.planning import ShardPlan
from gan_train.data.sharding import PROBES, expected_bytes
from gan_train.errors import UserError
from gan_train.files.atomic import read_json
from gan_train.metrics.real_cache import RECORD
from gan_train.tasks.task import SHIPPED_STATISTICS
from gan_train.training.fitting import least_factor, stretched
from gan_train.training.schedule import checkpoints, schedule_end, stage_at, world_sizes
from pipelines.compute.cluster import on_this_machine, threads_per_worker

START_S, END_S = 25.0, 10.0
"""Seconds from the command to the first step, and from the last score to the end of the command."""
PLAIN_S = 6.0
"""Seconds that a training without engines takes to start."""
LOST_ON_ALL_CORES, LOST_WITH_A_CORE_TO_SPARE = 0.12, 0.04
"""The share of the workers' speed that the engines, the log and the grids take."""
MORE_GIB = 0.5
"""What Ray, the loader and the features of a scoring add to a worker's memory."""
MEASURES_S = 2.0
"""Seconds that the measures of one scoring take once all features are known."""
AIM = 0.95
"""The share of the given minutes that a fitted run is expected to take, as no machine is steady."""
MOST_S_BETWEEN_CHECKPOINTS = 1800.0
"""No more seconds of training lie between two checkpoints of a schedule that was made longer."""


@dataclass(frozen=True)
class StagePrice:
    """The expected cost of one stage."""

    stage: Stage
    until: int
    """The number of images at which the stage ends."""
    images: int
    seconds_per_image: float | None
    """None where nothing is known."""
    measured: bool
    """Whether the speed was measured, or estimated by counted operations."""


@dataclass(frozen=True)
class Price:
    """The expected cost of a run in seconds."""

    stages: tuple[StagePrice, ...]
    scorings: int
    scoring: float | None
    """Seconds of all scorings; None where that is not known."""
    sharding: float
    ends: float
    """Seconds to start and to end."""

    @property
    def training(self) -> float | None:
        """Seconds of training; None where the speed of a stage is not known."""
        total = 0.0
        for part in self.stages:
            if part.seconds_per_image is None:
                return None
            total += part.images * part.seconds_per_image
        return total

    @property
    def beside(self) -> float:
        """Seconds of everything but training."""
        return (self.scoring or 0.0) + self.sharding + self.ends


class Prices:
    """What one recipe costs on this machine: measured once, for schedules of any length."""

    def __init__(
        self, config: Config, plan: ShardPlan, shape: ImageShape, *, plain: bool = False
    ) -> None:
        """Rehearse the recipe, which takes some seconds. With `plain` it trains without engines.

        Where the recipe requires GPUs that this machine does not have, nothing is rehearsed, and
        nothing but memory is known.
        """
        self._plan, self._shape, self._plain = plan, shape, plain
        cluster, cores = config.cluster, os.cpu_count() or 1
        self.workers = 1 if plain else world_sizes(config, shape)[0]
        self.elsewhere = cluster.jobs is not None or not on_this_machine(cluster)
        world = 1 if self.elsewhere else self.workers  # workers elsewhere do not share this machine
        self.threads = threads_per_worker(config, cores)
        if plain and config.train.threads is None:
            self.threads = torch.get_num_threads()
        self.lacks_gpus = cluster.gpu == "yes" and torch.cuda.device_count() < world

        self.rehearsed = Rehearsed()
        if not self.lacks_gpus:
            self.rehearsed = rehearse(config, shape, self.workers, world, self.threads)
        self._gpu = self.rehearsed.device == "cuda" or self.lacks_gpus
        self._seconds = dict(self.rehearsed.seconds)
        self.memory_gib = self._memory(config)
        if not self.lacks_gpus:
            units = 1 if self._gpu else min(self.threads, max(1, cores // world))
            self._seconds |= estimate(
                config, shape, self._seconds, self.workers * units, self.rehearsed.device
            )
        if not plain:
            spare = self._gpu or world * self.threads < cores
            lost = LOST_WITH_A_CORE_TO_SPARE if spare else LOST_ON_ALL_CORES
            self._seconds = {name: s / (1 - lost) for name, s in self._seconds.items()}
        self._sharding = 0.0
        if not (plan.directory / INDEX_NAME).exists():
            self._sharding = _sharding_seconds(plan) / cores
        self._real_known = _real_images_are_measured(config, plan)

    def of(self, config: Config) -> Price:
        """The expected cost of a run of this configuration, which may differ from the rehearsed one
        in its schedule alone."""
        adversary = config.family.build(self._shape, config.train.batch)
        stages = adversary.stages()
        end, start, parts = schedule_end(config, stages), 0, []
        while start < end:
            stage, until = stage_at(stages, start, end)
            seconds = self._seconds.get(stage.name)
            measured = stage.name in self.rehearsed.seconds
            parts.append(StagePrice(stage, until, until - start, seconds, measured))
            start = until
        scorings = len(checkpoints(config, stages, end))
        scoring = None
        if self.rehearsed.scoring is not None:
            first, later = self._passes(config)
            again = isinstance(adversary, Generates) and "frechet" in config.evaluate.metrics
            passes = scorings + again  # the best checkpoint is scored once more at the end
            images = first + later * (passes - 1)
            scoring = images * self.rehearsed.scoring + MEASURES_S * passes
        ends = PLAIN_S if self._plain else START_S + END_S
        return Price(tuple(parts), scorings, scoring, self._sharding, ends)

    def _passes(self, config: Config) -> tuple[int, int]:
        """How many images are scored the first time, with the real ones, and every later time."""
        e, sizes = config.evaluate, self._plan.sizes
        adversary = config.family.build(self._shape, config.train.batch)
        task = task_of(adversary)
        if task == "upscale":
            count = min(e.images, sizes.get("A_held_out", 0))
            return count, count
        if task == "translate":
            count = min(e.images, sizes["A"], sizes["B"])
            real = 0 if self._real_known else 2 * _of_real(count, min(sizes["A"], sizes["B"]))
            return 4 * count + real, 2 * count  # untranslated images are scored once, too
        count, paths = min(e.images, sizes["A"]), 0
        if "path_length" in e.metrics:
            paths = 2 * len(e.path_lengths) * e.path_length_images
        if set(e.metrics) == {"path_length"}:
            return paths, paths
        real = 0 if self._real_known else _of_real(count, sizes["A"])
        return count + paths + real, count + paths

    # ---- what was not measured -----------------------------------------------------------------

    def _memory(self, config: Config) -> float | None:
        """The peak memory of a worker in GiB: measured, or of a GPU that is not here, estimated."""
        if self.rehearsed.memory_gib is not None:
            if self._gpu:
                return self.rehearsed.memory_gib
            cached = self._plan.images * self._shape.channels * self._shape.resolution**2
            cached = cached if cached <= config.data.cache_mb << 20 else 0
            return self.rehearsed.memory_gib + MORE_GIB + cached / 2**30
        last = config.family.build(self._shape, config.train.batch).stages()[-1]
        counted = count(config, self._shape, [last.name]).get(last.name)
        share = last.batch // self.workers // config.train.accumulate
        return None if counted is None else counted.memory_gib(share)


def fitted(
    config: Config, minutes: float, prices: Prices, shape: ImageShape, chosen: Sequence[str] = ()
) -> Config:
    """The configuration with a schedule that makes the whole command take so many minutes.

    `chosen` has the keys that the user has set. Raises UserError where the time is too short, which
    names the least number of minutes, or cannot be predicted.
    """
    if minutes <= 0:
        raise UserError(f"--minutes {minutes:g}: allowed: more than 0")
    stages = config.family.build(shape, config.train.batch).stages()
    end, price, wanted = schedule_end(config, stages), prices.of(config), AIM * 60 * minutes
    if price.training is None:
        raise UserError(
            f"--minutes {minutes:g}: the time of {config.name} cannot be predicted on this machine "
            "(--dry-run says why); set its schedule in images instead, such as train.total_kimg"
        )
    least, factor, found = least_factor(stages, end), 1.0, config
    most = MOST_S_BETWEEN_CHECKPOINTS / (prices.of(config).stages[-1].seconds_per_image or 1) / 1000
    for _ in range(3):  # the number of scorings follows from the factor
        price = prices.of(found)
        assert price.training is not None
        factor *= (wanted - price.beside) / price.training
        if factor < least:
            price = prices.of(stretched(config, least, stages, end, most, chosen))
            assert price.training is not None
            needed = math.ceil((price.training + price.beside) / AIM / 6) / 10
            raise UserError(
                f"--minutes {minutes:g}: too short for {config.name}; allowed: {needed:g} or more "
                f"on this machine. {price.beside / 60:.1f} min of that are not training, and every "
                "stage needs some steps"
            )
        found = stretched(config, factor, stages, end, most, chosen)
    return recipes.change(found, {"train.fitted_minutes": minutes})


def fitted_here(config: Config, minutes: float, plan: ShardPlan, shape: ImageShape) -> Config:
    """`fitted`, by prices that are measured now. Raises UserError as it does."""
    world_sizes(config, shape)
    return fitted(config, minutes, Prices(config, plan, shape), shape)


def change_in_words(before: Config, after: Config) -> str:
    """What `fitted` has changed, in some words that a user sees."""
    old, new = (
        {
            f"{group}.{name}": value
            for group in ("family", "train")
            for name, value in getattr(config, group)
        }
        for config in (before, after)
    )
    changed = [
        f"{key} {old[key]} -> {new[key]}"
        for key in new
        if new[key] != old[key] and key != "train.fitted_minutes"
    ]
    return (
        f"the schedule is fitted to {after.train.fitted_minutes:g} min: {'; '.join(changed)}"
        if changed
        else "the schedule fits as it is"
    )


def _sharding_seconds(plan: ShardPlan) -> float:
    """CPU seconds of sharding, by the time for some images, which are read to see their size."""
    expected_bytes(plan)  # opens the source
    start = time.process_time()
    expected_bytes(plan)
    counts = [len(images) for images in plan.parts.values()]
    tried = sum(min(PROBES, count) for count in counts)
    return (time.process_time() - start) * sum(counts) / tried


def _of_real(count: int, available: int) -> int:
    """How many real images are measured once: N, and as many again for the null value."""
    return max(count, 2 * min(count, available // 2))


def _real_images_are_measured(config: Config, plan: ShardPlan) -> bool:
    """Whether an earlier run has stored the statistics of this data set's real images, or they come
    with the project. Without shards the data set is not known yet."""
    if not (plan.directory / INDEX_NAME).exists():
        return False
    part = Index.load(plan.directory).part("A")
    assert part is not None
    images = min(config.evaluate.images, part.samples)
    folder = config.workspace / "statistics" / part.content_hash[:16]
    shipped = SHIPPED_STATISTICS / RECORD
    known = read_json(shipped)["identity"] if shipped.is_file() else {}
    comes_along = known.get("data") == part.content_hash and known.get("images") == images
    return comes_along or any(folder.glob(f"*-n{images}"))
