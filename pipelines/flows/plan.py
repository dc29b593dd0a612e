"""Describes what a run would do, for `--dry-run`, and checks what can be checked before it starts.

Nothing is started here. Nothing is written either, but what `plan_shards` remembers of the source.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from gan_train.adversary import Adversary, ImageShape, Stage
from gan_train.config import Config
from gan_train.data.sharding import ShardPlan, expected_bytes, plan_shards
from gan_train.runs import run_folder
from gan_train.training.schedule import check, crossed, schedule_end, stage_at


def image_shape(config: Config, plan: ShardPlan) -> ImageShape:
    """The shape of the images that networks are built for, which is known before any shard is."""
    channels = 1 if config.data.colour == "grey" else 3
    return ImageShape(channels, config.data.resolution, plan.classes)


def precheck(config: Config, *, verify: bool = False) -> ShardPlan:
    """Check the configuration against the data, before Ray or Prefect start.

    Returns the plan of the shards, which the flow then uses; `plan_shards` gets `verify`.
    Raises UserError for a missing source, or workers or batches that do not fit.
    """
    plan = plan_shards(config.data, None, config.workspace, verify=verify)
    check(config, image_shape(config, plan), config.cluster.workers)
    return plan


def describe(config: Config) -> str:
    """What `run` would do, in some lines of text. Raises UserError as `precheck` does."""
    plan = plan_shards(config.data, None, config.workspace)
    shape = image_shape(config, plan)
    stages = check(config, shape, config.cluster.workers)
    end = schedule_end(config, stages)
    adversary = config.family.build(shape, config.train.batch)
    checkpoint = checkpoint_bytes(adversary)
    count = len(checkpoints(config, stages, end))
    kept = min(config.train.keep_checkpoints, count) + 1  # the best checkpoint is kept, too
    shards = expected_bytes(plan)
    disk = shards + kept * checkpoint
    cluster = config.cluster
    sources = " and ".join(map(str, dict.fromkeys(plan.sources)))
    finished = (plan.directory / "index.json").exists()
    older = [path.name for path in run_folder.runs_of(config)]
    parameters = sum(p.numel() for p in adversary.parameters())
    lines = [
        f"{config.name}: {config.family.name}, {parameters / 1e6:.2f} M parameters",
        "",
        f"images      {plan.images} of {shape.resolution} px, {config.data.colour}, "
        f"{len(shape.classes) or 'no'} classes, from {sources}",
        *_parts(plan),
        f"shards      {plan.shards} in {plan.directory}",
        f"            {_state(plan, finished)}",
        f"workers     {cluster.workers} x {cluster.cpus_per_worker:g} CPU, GPU: {cluster.gpu}, "
        + (cluster.jobs or cluster.address or "local Ray"),
        f"scores      {count} checkpoints, {config.evaluate.images} images each, "
        f"{config.evaluate.extractor}: {', '.join(config.evaluate.metrics)}",
        f"registry    {config.registry.tracking_uri or config.workspace / 'mlflow.db'}",
        f"disk        {_size(disk)} expected: shards {_size(shards)}, {kept} checkpoints of "
        f"{_size(checkpoint)}; {_size(shutil.disk_usage(_existing(config.workspace)).free)} free",
        f"runs        {len(older)} of this recipe" + (f", newest {older[-1]}" if older else ""),
        "",
        *_stage_table(stages, end),
    ]
    return "\n".join(lines)


def _parts(plan: ShardPlan) -> list[str]:
    """A line on the images of each part, where the data have more than one."""
    if len(plan.parts) == 1:
        return []
    return ["            " + ", ".join(f"{len(i)} in {part}" for part, i in plan.parts.items())]


def _state(plan: ShardPlan, finished: bool) -> str:
    if finished:
        return "written before: hashes are verified, nothing is written"
    if plan.done:
        return f"{len(plan.done)} written before by a run that did not finish; the rest follows"
    return "not written yet"


def _stage_table(stages: Sequence[Stage], end: int) -> list[str]:
    lines = [f"{'stage':<16}{'resolution':>10}{'batch':>8}{'kimg':>10}{'until':>10}"]
    start = 0
    while start < end:
        stage, until = stage_at(stages, start, end)
        lines.append(
            f"{stage.name:<16}{stage.resolution:>10}{stage.batch:>8}"
            f"{(until - start) / 1000:>10.1f}{until / 1000:>10.1f}"
        )
        start = until
    return lines


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


def checkpoint_bytes(adversary: Adversary) -> int:
    """The size of one checkpoint in bytes: networks, moving averages, and two moments for every
    parameter."""
    state = sum(t.numel() * t.element_size() for t in adversary.state_dict().values())
    averaged = sum(
        t.numel() * t.element_size()
        for name in adversary.averaged
        for t in getattr(adversary, name).state_dict().values()
    )
    moments = 2 * sum(p.numel() * p.element_size() for p in adversary.parameters())
    return state + averaged + moments


def _existing(path: Path) -> Path:
    return path if path.exists() else _existing(path.parent)


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if count < 1024 or unit == "TiB":
            break
        count /= 1024
    return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
