"""Rehearses a run for a second or two: what a step of each stage costs, without the data set.

The workers of the run are started as plain processes, with the threads and the shares of the batch
that they would have. They take steps of the real trainer in every stage, on noise, and score some
images of the untrained generator. So what the workers cost each other, by messages and by sharing
the machine, is in the figures. What Ray, Prefect, MLflow and the loader cost is not.

A stage that is too large for that is not tried, and neither are those after a stage that takes too
long; `operations.py` counts what they would do.
"""

from __future__ import annotations

import json
import tempfile
import time
from array import array
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed

from gan_train import recipes
from gan_train.adversary import Clock, ImageShape, Stage, Translates, Upscales
from gan_train.config import Config
from gan_train.data.index import Index, Part, ShardInfo, content_hash, shard_name
from gan_train.data.loader import LoadedBatch
from gan_train.images.resize import bicubic_downsample
from gan_train.nn.collectives import any_worker, end
from gan_train.runs.runtime import PlainRuntime
from gan_train.training.curves import peak_memory_gib
from gan_train.training.trainer import Trainer
from gan_train.training.workers import joined, kill, started

_SECONDS = 2.0
"""The time for all stages together, in which each gets an equal share, and at least one step."""
_LONG_STEP_S = 3.0
"""After a stage whose step takes longer than this, no later stage is tried."""
_START_S, _STAGE_S = 120.0, 60.0
"""The workers are ended when they take longer than this to start, or for one stage."""
_MOST_PIXELS = 1 << 20
"""A stage with more pixels in a worker's share of a batch is not tried on a CPU: one step might
take minutes, and more memory than there is."""
_SCORED = 16
_SAMPLES = 256
_FILE = "rehearsed.jsonl"


@dataclass
class Rehearsed:
    """The measurements of a rehearsal. Where something was not measured it is missing, or None."""

    seconds: dict[str, float] = field(default_factory=dict)
    """Elapsed seconds for an image of the global batch, by the name of the stage."""
    cpu_seconds: dict[str, float] = field(default_factory=dict)
    """CPU seconds of a worker for an image of its share of the batch, by the name of the stage."""
    scoring: float | None = None
    """Elapsed seconds for an image that is made and scored, over all workers."""
    memory_gib: float | None = None
    """The peak memory of a worker."""
    device: str = "cpu"


def rehearse(
    config: Config, shape: ImageShape, workers: int, world: int, threads: int
) -> Rehearsed:
    """Rehearse a run of so many `workers` with `world` of them, which are processes of this machine
    with so many threads each.

    Takes some seconds, most of them to start the processes. Raises UserError where the
    configuration needs a GPU and a worker gets none, and what the workers raise.
    """
    with tempfile.TemporaryDirectory(prefix="gan-train-") as folder:
        processes = started(_worker, (workers, world, threads, folder, config, shape), world)
        try:
            path, known, since = Path(folder) / _FILE, 0, time.monotonic()
            while not processes.join(0.05):
                lines = _lines(path)
                if len(lines) > known:
                    known, since = len(lines), time.monotonic()
                if time.monotonic() - since > (_STAGE_S if known else _START_S):
                    break
        finally:
            kill(processes)
        return _read(path)


def _lines(path: Path) -> list[str]:
    """The complete lines that the first worker has written so far."""
    if not path.exists():
        return []
    return [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


def _read(path: Path) -> Rehearsed:
    found = Rehearsed()
    for line in _lines(path):
        record: dict[str, Any] = json.loads(line)
        found.seconds |= record.get("seconds", {})
        found.cpu_seconds |= record.get("cpu_seconds", {})
        found.scoring = record.get("scoring", found.scoring)
        found.memory_gib = record.get("memory_gib", found.memory_gib)
        found.device = record.get("device", found.device)
    return found


# ---- in a worker -------------------------------------------------------------------------------


def _worker(
    rank: int,
    workers: int,
    world: int,
    threads: int,
    folder: str,
    config: Config,
    shape: ImageShape,
) -> None:
    runtime = joined(rank, world, threads, folder, config, PlainRuntime)
    path = Path(folder)

    def note(**values: Any) -> None:
        if rank == 0:
            with (path / _FILE).open("a") as file:
                file.write(json.dumps(values) + "\n")

    config = _without_data(config, path)
    trainer = Trainer(config, _index(config, shape), path, runtime)
    note(device=runtime.device.type)
    task = trainer.scorer.task
    trainer.scorer.adversary.advance(_middle(trainer, trainer.stages[-1]))
    gpu = runtime.device.type == "cuda"
    if gpu or trainer.stages[-1].resolution ** 2 <= _MOST_PIXELS // _SCORED:
        task.rehearse(2)
        elapsed, _ = _elapsed(runtime.device, lambda: task.rehearse(_SCORED))
        note(scoring=elapsed / _SCORED / workers)
    budget = _SECONDS / len(trainer.stages)
    for stage in trainer.stages:
        share = stage.batch // workers
        if not gpu and share * stage.resolution**2 > _MOST_PIXELS:
            break
        seconds, cpu = _step(trainer, stage, share, budget)
        note(
            seconds={stage.name: seconds / stage.batch},
            cpu_seconds={stage.name: cpu / share},
            memory_gib=peak_memory_gib(runtime.device),
        )
        own = min(seconds, cpu)  # other work on the machine does not make a step long
        if any_worker(own > _LONG_STEP_S, runtime.device):
            break
    end()


def _step(trainer: Trainer, stage: Stage, share: int, budget: float) -> tuple[float, float]:
    """The elapsed and the CPU seconds of a step with `share` images on each worker: the means over
    a cycle of the lazy regularisers, whose steps are timed by themselves."""
    trainer.clock = middle = _middle(trainer, stage)
    trainer.enter(stage)
    loaded = _noise(trainer, stage, share)
    main = replace(stage, phases=tuple(p for p in stage.phases if p.every == 1))
    lazy = [phase for phase in stage.phases if phase.every > 1]
    device, world = trainer.device, trainer.runtime.world_size

    def step(phases: Stage) -> tuple[float, float]:
        trainer.clock = middle  # a short stage might end
        return _elapsed(device, lambda: trainer.step(phases, loaded))

    every_phase = replace(stage, phases=tuple(replace(p, every=1) for p in stage.phases))
    step(every_phase)  # allocates memory and chooses kernels
    once = step(main)
    count = torch.tensor(max(1.0, min(32.0, budget / once[0])), device=device)
    if world > 1:
        torch.distributed.broadcast(count, 0)  # all workers take the same number of steps
    usual = _medians([once, *(step(main) for _ in range(int(count)))])
    seconds, cpu = usual
    for phase in lazy:
        added = replace(main, phases=(*main.phases, replace(phase, every=1)))
        more = _medians([step(added) for _ in range(2)])
        seconds += (more[0] - usual[0]) / phase.every
        cpu += (more[1] - usual[1]) / phase.every
    return seconds, cpu


def _medians(times: list[tuple[float, float]]) -> tuple[float, float]:
    return median(elapsed for elapsed, _ in times), median(cpu for _, cpu in times)


def _elapsed(device: torch.device, work: Callable[[], object]) -> tuple[float, float]:
    """The elapsed and the CPU seconds of some work."""
    start, cpu = time.perf_counter(), time.process_time()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start, time.process_time() - cpu


def _middle(trainer: Trainer, stage: Stage) -> Clock:
    """The clock in the middle of a stage. No lazy regulariser is due by its step."""
    before = sum(s.nimg for s in trainer.stages[: trainer.stages.index(stage)])
    return Clock(0, before + stage.nimg // 2)


def _noise(trainer: Trainer, stage: Stage, share: int) -> LoadedBatch:
    """A worker's share of a batch of noise, with everything beside it that the task needs."""
    adversary, rank, side = trainer.adversary, trainer.runtime.rank, stage.resolution
    shape = adversary.shape
    random = torch.Generator().manual_seed(rank)
    images = torch.randint(
        256, (share, shape.channels, side, side), dtype=torch.uint8, generator=random
    )
    labels = None
    if shape.classes:
        labels = torch.randint(len(shape.classes), (share,), generator=random)
    beside = {}
    if isinstance(adversary, Upscales):
        beside["low"] = bicubic_downsample(images, adversary.scale)
    if isinstance(adversary, Translates):
        beside["other"] = images.flip(0)
    positions = trainer.clock.nimg + rank * share + torch.arange(share)
    return LoadedBatch(images, labels, positions, beside)


def _without_data(config: Config, folder: Path) -> Config:
    """The configuration without what a rehearsal has no use for, or must not touch."""
    changes: dict[str, Any] = {
        "workspace": str(folder),
        "data.loader_workers": 0,
        "train.threads": None,
        "train.start_from": None,
        "train.profile_steps": 0,
        "evaluate.pictures": None,
        "evaluate.images": 16,
        "evaluate.path_length_images": 2,
    }
    # a download is no part of a rehearsal: the packaged network stands in for another one
    for network, prefix in (("extractor", ""), ("perceptual", "perceptual_")):
        weights = getattr(config.evaluate, f"{prefix}weights")
        if weights is not None and not Path(weights).is_file():
            changes[f"evaluate.{network}"] = "efficientnet_lite0"
            changes |= {f"evaluate.{prefix}weights": None, f"evaluate.{prefix}sha256": None}
    return recipes.change(config, changes)


def _index(config: Config, shape: ImageShape) -> Index:
    """The index of a data set that is not there, with every part that the run's data set might
    have."""
    parts: list[Part] = ["A", "A_held_out"]
    if config.data.second is not None:
        parts += ["B", "B_held_out"]
    samples = max(_SAMPLES, 2 * len(shape.classes))
    shards = tuple(
        ShardInfo(
            name=shard_name(number),
            samples=samples,
            bytes=1024 * samples,
            sha256="0" * 64,
            offsets=array("Q", range(samples)),
            part=part,
        )
        for number, part in enumerate(parts if not shape.classes else parts[:1])
    )
    places = range(samples)
    each = [len(places[first :: len(shape.classes)]) for first in range(len(shape.classes))]
    return Index(
        content_hash=content_hash(shards, {}),
        samples=samples * len(shards),
        resolution=shape.resolution,
        channels=1 if shape.channels == 1 else 3,
        classes=shape.classes,
        class_counts=tuple(each),
        transform={},
        quarantined=0,
        shards=shards,
    )
