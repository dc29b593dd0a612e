"""Describes what a run would do, for `--dry-run`, and checks what can be checked before it starts.

No engine is started here. Nothing is written either, but what `plan_shards` remembers of the
source.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from gan_train import recipes
from gan_train.adversary import Adversary, ImageShape
from gan_train.config import Config
from gan_train.data.planning import ShardPlan, plan_shards
from gan_train.data.sharding import expected_bytes
from gan_train.runs import run_folder
from gan_train.training.schedule import check, checkpoints, schedule_end, world_sizes
from pipelines.compute.cluster import address_of
from pipelines.registry.tracking import tracking_uri

if TYPE_CHECKING:
    from pipelines.flows.price import Price, Prices


def image_shape(config: Config, plan: ShardPlan) -> ImageShape:
    """The shape of the images that networks are built for, which is known before any shard is."""
    channels = 1 if config.data.colour == "grey" else 3
    return ImageShape(channels, config.data.resolution, plan.classes)


def precheck(config: Config, *, verify: bool = False) -> ShardPlan:
    """Check the configuration against the data, before Ray or Prefect start.

    Returns the plan of the shards, which the flow then uses; `plan_shards` gets `verify`.
    Raises UserError for a missing source, or workers or batches that do not fit.
    """
    plan = plan_shards(config.data, None, config.workspace, store=config.store, verify=verify)
    world_sizes(config, image_shape(config, plan))
    return plan


def growing(config: Config) -> Config:
    """The configuration of a set that grows. With two domains it stays as it is: then any new image
    means that all are sharded anew."""
    return recipes.change(config, {"data.grow": config.data.second is None})


def describe(config: Config, plan: ShardPlan, prices: Prices) -> str:
    """What `run` would do, and what that costs by `prices`, in some lines of text."""
    shape = image_shape(config, plan)
    sizes = world_sizes(config, shape)
    stages = check(config, shape, sizes[0])
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
        f"workers     {', '.join(map(str, sizes[:-1]))}{' or ' * (len(sizes) > 1)}{sizes[-1]} x "
        f"{cluster.cpus_per_worker:g} CPU, GPU: {cluster.gpu}, "
        + (cluster.jobs or address_of(cluster) or "local Ray"),
        f"scores      {count} checkpoints, {config.evaluate.images} images each, "
        f"{config.evaluate.extractor}: {', '.join(config.evaluate.metrics)}",
        f"registry    {tracking_uri(config)}",
        f"disk        {_size(disk)} expected: shards {_size(shards)}, {kept} checkpoints of "
        f"{_size(checkpoint)}; {_size(shutil.disk_usage(_existing(config.workspace)).free)} free",
        f"runs        {len(older)} of this recipe" + (f", newest {older[-1]}" if older else ""),
        *_costs(config, prices),
        "",
        *_stage_table(prices.of(config)),
    ]
    return "\n".join(lines)


def _parts(plan: ShardPlan) -> list[str]:
    """A line on the images of each part, where the data have more than one."""
    if len(plan.sizes) == 1:
        return []
    return ["            " + ", ".join(f"{n} in {part}" for part, n in plan.sizes.items())]


def _state(plan: ShardPlan, finished: bool) -> str:
    if finished:
        return "written before: hashes are verified, nothing is written"
    if plan.before:
        new = sum(map(len, plan.parts.values()))
        return f"the set grows: {new} images are new, {plan.images - new} are in shards that stay"
    if plan.done:
        return f"{len(plan.done)} written before by a run that did not finish; the rest follows"
    return "not written yet"


def _costs(config: Config, prices: Prices) -> list[str]:
    """Lines on the time and the memory of the run, and on how they were found."""
    price, cluster, last = prices.of(config), config.cluster, list[str]()
    if prices.lacks_gpus:
        last = [
            f"time        not predicted: cluster.gpu is `yes`, and this machine has fewer than "
            f"{cluster.workers} GPUs"
        ]
    elif price.training is None:
        last = ["time        not predicted: a stage is too large to be tried on this machine"]
    else:
        about = "about " if not all(stage.measured for stage in price.stages) else ""
        parts = [f"training {_duration(price.training)}"]
        if price.scoring is not None:
            parts.append(f"{price.scorings} scorings {_duration(price.scoring)}")
        if price.sharding >= 1:
            parts.append(f"sharding {_duration(price.sharding)}")
        parts.append(f"start and end {_duration(price.ends)}")
        last = [
            f"time        {about}{_duration(price.training + price.beside)} expected: "
            + ", ".join(parts),
            f"            by some steps of {'one worker' if prices.elsewhere else 'all workers'} "
            f"on this machine, {prices.threads} thread{'s' * (prices.threads > 1)} each"
            + ("; the cluster's may be faster or slower" if prices.elsewhere else ""),
        ]
        if price.scoring is None:
            last.append("            scoring not included: it was not tried on this machine")
    counted = [stage.stage.name for stage in price.stages if not stage.measured]
    if counted and price.training is not None:
        last.append(
            f"            ~ {', '.join(counted)}: by counted operations, no step was tried; may be "
            "wrong by a factor of two"
        )
    if prices.memory_gib is not None:
        kind = "of a GPU, estimated" if prices.lacks_gpus else "at the peak"
        last.append(f"memory      {prices.memory_gib:.2g} GiB a worker, {kind}")
    return last


def _stage_table(price: Price) -> list[str]:
    lines = [
        f"{'stage':<16}{'resolution':>10}{'batch':>8}{'kimg':>10}{'until':>10}"
        f"{'images/s':>10}{'minutes':>9}"
    ]
    for part in price.stages:
        speed, minutes = "-", "-"
        if part.seconds_per_image is not None:
            speed = f"{'' if part.measured else '~'}{1 / part.seconds_per_image:.3g}"
            minutes = f"{part.images * part.seconds_per_image / 60:.1f}"
        lines.append(
            f"{part.stage.name:<16}{part.stage.resolution:>10}{part.stage.batch:>8}"
            f"{part.images / 1000:>10.1f}{part.until / 1000:>10.1f}{speed:>10}{minutes:>9}"
        )
    return lines


def _duration(seconds: float) -> str:
    """A time in words: `40 s`, `5.3 min`, `7.1 h`, `12 days`."""
    for most, unit, name in ((90, 1, "s"), (90 * 60, 60, "min"), (72 * 3600, 3600, "h")):
        if seconds < most:
            return f"{seconds / unit:.{0 if unit == 1 else 1}f} {name}"
    return f"{seconds / 86400:.0f} days"


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
