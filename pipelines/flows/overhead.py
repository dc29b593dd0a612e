"""`gan-train bench`: measures what each part of a run costs, and what the engines add to training.

The overhead compares a real training flow (Prefect, Ray Train, event log, MLflow, sample grids) in
the last stage of the schedule with the bare training loop on as many workers. Both run on this
machine, one after the other.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from gan_train import recipes
from gan_train.adversary import Clock
from gan_train.bench import parts
from gan_train.config import Config
from gan_train.data.index import Index
from gan_train.data.sharding import shard
from gan_train.files.atomic import write_json
from gan_train.runs import checkpoint, run_folder
from gan_train.runs.runtime import PlainRuntime
from gan_train.training.trainer import Trainer
from pipelines.flows import cpu_time

Shares = dict[str, float]
"""Shares of one core by the role of processes."""


def measure(config: Config, seconds: float, rounds: int) -> Iterator[str]:
    """Yield the lines of the report, each as soon as it is known. Each timing takes `seconds`.

    The machine's speed drifts, so one worker, several workers and the pipeline take turns for
    `rounds` rounds, and the ratios are medians over the rounds. Paths in `config` are absolute.
    """
    with tempfile.TemporaryDirectory() as folder:
        config = recipes.change(config, {"workspace": folder})
        shards = shard(config.data, config.workspace)
        index = Index.load(shards)
        stage = parts.last_stage(config, index)
        yield (
            f"{config.name}, stage {stage.name}: global batch {stage.batch}, "
            f"{os.cpu_count()} cores, {config.cluster.workers} workers"
        )
        yield _row("sharding", parts.time_sharding(config))
        for name, timing in parts.time_loader(config, index, shards).items():
            yield _row(name, timing)
        yield _row("scoring", parts.time_scoring(config, index, shards))
        yield from _steps(config, shards, index, seconds, rounds)


def _steps(
    config: Config, shards: Path, index: Index, seconds: float, rounds: int
) -> Iterator[str]:
    """Yield lines on training with one worker and with several, bare and inside the pipeline.

    With fewer workers than cores the engines have a core of their own. With as many workers as
    cores, the engines take their time from training.
    """
    workers = config.cluster.workers
    # one worker with the share of the batch that each of several would have
    share = {"train.batch": config.train.batch // workers, "train.threads": 1}
    alone = recipes.change(config, share | {"cluster.workers": 1})
    rounds_of = []
    shares: tuple[list[Shares], list[Shares]] = ([], [])
    for _ in range(rounds):
        one = parts.time_workers(alone, shards, 1, seconds)
        one_whole, taken = _pipeline(alone, shards, index, 4 * one * seconds)
        shares[0].append(taken)
        bare = parts.time_workers(config, shards, workers, seconds)
        whole, taken = _pipeline(config, shards, index, 4 * bare * seconds)
        shares[1].append(taken)
        rounds_of.append((one, one_whole, bare, whole))
    one, one_whole, bare, whole = (median(column) for column in zip(*rounds_of, strict=True))
    scaling = median(r[2] / r[0] for r in rounds_of)
    overheads = [median(r[i] / r[i + 1] - 1 for r in rounds_of) for i in (0, 2)]
    names = "1 worker", f"{workers} workers"
    yield f"{f'step, {names[0]} on 1 core':32}{one:10.0f} images/s"
    yield f"{f'step, {names[1]}':32}{bare:10.0f} images/s   {scaling:.2f} times one worker"
    for name, rate, overhead in zip(names, (one_whole, whole), overheads, strict=True):
        row = f"whole pipeline, {name}"
        yield f"{row:32}{rate:10.0f} images/s   overhead {100 * overhead:+.1f}%"
    for name, taken_by in zip(names, shares, strict=True):
        yield from used_by_engines(name, taken_by)


def used_by_engines(name: str, rounds: list[Shares]) -> Iterator[str]:
    """A line on the shares of a core that all but the workers used, the medians over the rounds.
    There is none where the shares are not known: off Linux, or where the rounds were too short."""
    known = [taken for taken in rounds if taken]
    roles = sorted({role for taken in known for role in taken} - {cpu_time.WORKERS})
    if known:
        shares = {role: median(taken.get(role, 0.0) for taken in known) for role in roles}
        each = ", ".join(f"{role} {100 * share:.1f}%" for role, share in shares.items())
        row = f"{f'engines, {name}':32}{100 * sum(shares.values()):9.1f}% of a core"
        yield f"{row}   {each}"


def _row(name: str, timing: parts.Timing) -> str:
    return (
        f"{name:32}{timing.images_per_second:10.0f} images/s "
        f"{timing.images_per_cpu_second:10.0f} per CPU-second"
    )


def _pipeline(config: Config, shards: Path, index: Index, images: float) -> tuple[float, Shares]:
    """Images/s of a training flow over `images` images in the last stage, by its event log, and the
    shares of a core that its processes used by their role.

    The second half is measured, after one epoch at least. The first half pays for the imports of
    MLflow, for a database, and for decoding images that then stay in memory (`data.cache_mb`).
    """
    from pipelines.flows import prefect_env

    prefect_env.prepare(config)
    from pipelines.flows import pipeline

    images = max(images, 2.2 * index.samples)
    run_dir = run_folder.new(config, shards)
    start = _begin_in_last_stage(config, shards, index, run_dir)
    # scoring is timed elsewhere, so here it is as short as can be
    least = {"evaluate.metrics": ["diversity"], "evaluate.images": 8}
    config = recipes.change(config, least | {"train.total_kimg": (start + images) / 1000})
    with cpu_time.sampling() as samples:
        pipeline.train_flow(config, run_dir.name)
    ticks = [e for e in run_folder.read_events(run_dir) if e["kind"] == "metrics"]
    first, last = ticks[len(ticks) // 2 - 1], ticks[-1]
    rate = 1000 * (last["nimg"] - first["nimg"]) / (last["time_ms"] - first["time_ms"])
    return rate, samples.shares(first["time_ms"], last["time_ms"])


def _begin_in_last_stage(config: Config, shards: Path, index: Index, run_dir: Path) -> int:
    """Give the run an untrained checkpoint in the middle of the last stage; returns the number of
    images at which it stands."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(config, index, shards, PlainRuntime(Path(folder)))
        *before, stage = trainer.stages
        steps = (sum(s.nimg for s in before) + stage.nimg // 2) // stage.batch
        trainer.clock = trainer.trained = Clock(steps, steps * stage.batch)
        trainer.stage_name = stage.name
        trainer.save(score=False)
        (saved,) = checkpoint.list_checkpoints(Path(folder))
        write_json(saved / checkpoint.SCORES, {"scores": {}, "protocol": {}})
        shutil.copytree(saved, run_dir / checkpoint.FOLDER / saved.name)
    return trainer.clock.nimg
