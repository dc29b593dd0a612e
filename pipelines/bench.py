"""`gan-train bench`: what each part of a run costs, and what the whole pipeline adds.

The overhead compares a real training flow (Prefect, Ray Train, event log, MLflow, sample grids) in
the last stage with the bare loop of the same number of workers; both run here, one after the other.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from gan_train import bench, checkpoint, recipes, runs
from gan_train.adversary import Clock
from gan_train.config import Config
from gan_train.data.index import Index
from gan_train.data.sharding import shard
from gan_train.runtime import PlainRuntime
from gan_train.trainer import Trainer


def measure(config: Config, seconds: float, rounds: int) -> Iterator[str]:
    """The lines of the report, each as soon as it is known. `seconds` go into each timing.

    The machine's speed drifts, so one worker, several, and the pipeline take turns for `rounds`
    rounds; ratios are medians over the rounds.
    """
    config = recipes.anchored(config)
    with tempfile.TemporaryDirectory() as folder:
        config = config.model_copy(update={"workspace": Path(folder)})
        shards = shard(config.data, config.workspace)
        index = Index.load(shards)
        stage = bench.last_stage(config, index)
        yield (
            f"{config.name}, stage {stage.name}: global batch {stage.batch}, "
            f"{os.cpu_count()} cores, {config.cluster.workers} workers"
        )
        yield _row("sharding", bench.time_sharding(config))
        for name, timing in bench.time_loader(config, index, shards).items():
            yield _row(name, timing)
        yield _row("scoring", bench.time_scoring(config, index, shards))
        yield from _steps(config, shards, index, seconds, rounds)


def _steps(
    config: Config, shards: Path, index: Index, seconds: float, rounds: int
) -> Iterator[str]:
    """Training: one worker, several, and several inside the pipeline."""
    workers = config.cluster.workers
    share = config.train.model_copy(update={"batch": config.train.batch // workers})
    each = config.model_copy(update={"train": share})  # what one worker of several gets
    pairs = []
    for _ in range(rounds):
        one = bench.time_workers(each, shards, 1, seconds)
        bare = bench.time_workers(config, shards, workers, seconds)
        whole = _pipeline(config, shards, index, 4 * bare * seconds)
        pairs.append((one, bare, whole))
    one, bare, whole = (median([p[i] for p in pairs]) for i in range(3))
    scaling = median([p[1] / p[0] for p in pairs])
    overhead = median([p[1] / p[2] - 1 for p in pairs])
    yield f"{'step, 1 worker on 1 core':32}{one:10.0f} images/s"
    yield f"{f'step, {workers} workers':32}{bare:10.0f} images/s   {scaling:.2f} times one worker"
    yield f"{'whole pipeline':32}{whole:10.0f} images/s   overhead {100 * overhead:+.1f}%"


def _row(name: str, timing: bench.Timing) -> str:
    return (
        f"{name:32}{timing.images_per_second:10.0f} images/s "
        f"{timing.images_per_cpu_second:10.0f} per CPU-second"
    )


def _pipeline(config: Config, shards: Path, index: Index, images: float) -> float:
    """Images/s of a training flow over `images` images in the last stage, by its event log.

    Its steady state is the second half: the first pays for the imports of MLflow and a database.
    """
    from pipelines import prefect_env

    prefect_env.prepare(config)
    from pipelines import flows

    run_dir = runs.new(config, shards)
    start = _begin_in_last_stage(config, shards, index, run_dir)
    total_kimg = (start + images) / 1000
    config = config.model_copy(
        update={
            "train": config.train.model_copy(update={"total_kimg": total_kimg}),
            # scoring is timed on its own
            "evaluate": config.evaluate.model_copy(update={"metrics": ("diversity",), "images": 8}),
        }
    )
    flows.train_flow(config, run_dir.name)
    ticks = [e for e in runs.read_events(run_dir) if e["kind"] == "metrics"]
    first, last = ticks[len(ticks) // 2 - 1], ticks[-1]
    return 1000 * (last["nimg"] - first["nimg"]) / (last["time_ms"] - first["time_ms"])


def _begin_in_last_stage(config: Config, shards: Path, index: Index, run_dir: Path) -> int:
    """Give the run an untrained checkpoint amid the last stage; returns the images it stands at."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(config, index, shards, PlainRuntime(Path(folder)))
        *before, stage = trainer.stages
        steps = (sum(s.nimg for s in before) + stage.nimg // 2) // stage.batch
        trainer.clock = trainer.trained = Clock(steps, steps * stage.batch)
        trainer.stage_name = stage.name
        trainer.save(score=False)
        (saved,) = checkpoint.candidates(Path(folder))
        checkpoint.write_json(saved / checkpoint.SCORES, {"scores": {}, "protocol": {}})
        shutil.copytree(saved, run_dir / checkpoint.FOLDER / saved.name)
    return trainer.clock.nimg
