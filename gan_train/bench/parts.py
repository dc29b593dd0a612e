"""Times the parts of a run by themselves: training step, loader, sharding, scoring.

Times of one machine say little about another; ratios within one call say more.
`pipelines/flows/overhead.py` adds the overhead of Ray, Prefect and MLflow, and prints the table.
"""

from __future__ import annotations

import itertools
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed
from torch.multiprocessing.spawn import spawn

from gan_train import recipes
from gan_train.adversary import Clock, Stage
from gan_train.config import Config
from gan_train.data.feed import Feed
from gan_train.data.index import Index
from gan_train.data.sharding import shard
from gan_train.nn.collectives import end
from gan_train.runs.runtime import PlainRuntime
from gan_train.training.scoring import Scorer
from gan_train.training.trainer import Trainer
from gan_train.training.workers import joined


@dataclass(frozen=True)
class Timing:
    """Images per elapsed second, and per CPU second of this process."""

    images_per_second: float
    images_per_cpu_second: float


def time_work(work: Callable[[], int]) -> Timing:
    """Time `work`, which returns how many images it handled."""
    wall, cpu = time.perf_counter(), time.process_time()
    images = work()
    return Timing(images / (time.perf_counter() - wall), images / (time.process_time() - cpu))


def last_stage(config: Config, index: Index) -> Stage:
    """The last stage of the schedule, at full resolution."""
    return config.family.build(index.image_shape, config.train.batch).stages()[-1]


def time_steps(
    config: Config, index: Index, shards: Path, runtime: PlainRuntime, seconds: float
) -> Timing:
    """Time `Trainer.step` in the last stage for about `seconds`, on batches that are in memory."""
    trainer = Trainer(config, index, shards, runtime)
    *before, stage = trainer.stages
    trainer.clock = Clock(0, sum(s.nimg for s in before) + stage.nimg // 2)
    batches = list(itertools.islice(trainer.loader.batches(0, stage.batch, stage.resolution), 8))
    turn = itertools.cycle(batches)
    for _ in range(8):
        trainer.step(stage, next(turn))

    def steps() -> int:
        done, until = 0, time.perf_counter() + seconds
        # rank 0's clock decides every 8 steps, so that all workers take the same number of steps
        while True:
            for _ in range(8):
                trainer.step(stage, next(turn))
                done += stage.batch
            over = torch.tensor([float(time.perf_counter() > until)], device=runtime.device)
            if runtime.world_size > 1:
                torch.distributed.broadcast(over, 0)
            if over.item():  # reading the value waits for the GPU
                return done

    return time_work(steps)


def time_loader(config: Config, index: Index, shards: Path) -> dict[str, Timing]:
    """Time one epoch that is decoded, then one from the cache, as a single worker reads them."""
    stage = last_stage(config, index)
    adversary = config.family.build(index.image_shape, config.train.batch)
    here = recipes.change(config, {"data.loader_workers": 0}).data
    loader = Feed(here, config.seed, index, shards, adversary, rank=0, world_size=1)
    count = max(index.samples // stage.batch, 1)
    stream = loader.batches(0, stage.batch, stage.resolution)

    def epoch() -> int:
        return sum(len(b.images) for b in itertools.islice(stream, count))

    return {"loader, decoding": time_work(epoch), "loader, from memory": time_work(epoch)}


def time_sharding(config: Config) -> Timing:
    """Time the sharding of the whole source, in this process."""
    with tempfile.TemporaryDirectory() as folder:
        return time_work(lambda: Index.load(shard(config.data, Path(folder))).samples)


def time_scoring(config: Config, index: Index, shards: Path) -> Timing:
    """Time the scoring of a generator, including the making of its images. The statistics of the
    real images are computed before."""
    with tempfile.TemporaryDirectory() as folder:
        runtime = PlainRuntime(Path(folder), config.cluster.gpu)
        family = config.family.build(index.image_shape, config.train.batch).to(runtime.device)
        family.advance(Clock(0, sum(s.nimg for s in family.stages())))
        scorer = Scorer(config, index, shards, runtime, family)
        scorer.measure()  # caches the statistics of the real images

        def score() -> int:
            scorer.measure()
            return config.evaluate.images

        return time_work(score)


def _worker(
    rank: int, world: int, folder: str, config: Config, shards: str, seconds: float
) -> None:
    runtime = joined(rank, world, 1, folder, config, PlainRuntime)
    index = Index.load(Path(shards))
    timing = time_steps(config, index, Path(shards), runtime, seconds)
    if rank == 0:
        (Path(folder) / "rate").write_text(json.dumps(timing.images_per_second))
    end()


def time_workers(config: Config, shards: Path, world: int, seconds: float) -> float:
    """The images per second of `time_steps` in `world` worker processes of one thread each."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = (world, folder, config, str(shards), seconds)
        spawn(_worker, arguments, nprocs=world)
        return float((Path(folder) / "rate").read_text())
