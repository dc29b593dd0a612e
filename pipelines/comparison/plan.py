"""Decides what a comparison will do: its recipes, the settings that all of them get, the budget.

Nothing here starts an engine or trains. All recipes get the data, the protocol of scoring and the
places of one recipe, by default the first: `data`, `evaluate`, `workspace`, `registry`, `flow`,
and the address of the cluster.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field

from gan_train import recipes
from gan_train.config import ClusterConfig, Config
from gan_train.data.planning import plan_shards
from gan_train.errors import UserError
from gan_train.runs import run_folder
from gan_train.runs.events import read_events
from gan_train.training.schedule import check, checkpoints, schedule_end
from pipelines.comparison.training_time import training_seconds
from pipelines.compute.cluster import on_this_machine
from pipelines.flows.plan import image_shape

_DECIDED = {
    "train.total_kimg": "the budget says how long training is: --kimg or --minutes",
    "cluster.jobs": "a comparison trains from this process; submit it as a whole: "
    "ray job submit -- gan-train compare ...",
    "evaluate.path_lengths": "all families are measured between latents z (z_end)",
}
_SHARED = ("data", "evaluate", "workspace", "registry", "flow")
_SCORINGS = 6
_SEEDLESS = 1
"""The first sequence of latents (`evaluate.latents`) that is the same for all seeds."""


class Training(NamedTuple):
    """One of the trainings of a recipe, which differ in their seed alone."""

    config: Config
    """The recipe with this training's seed."""
    number: int = 0
    """Which of the recipe's trainings this is, from 0."""
    of: int = 1
    """How many trainings the recipe has."""

    @property
    def several(self) -> bool:
        """Whether the recipe has other trainings, too."""
        return self.of > 1

    @property
    def label(self) -> str:
        """The recipe's name, with the seed where it has other trainings, too."""
        return f"{self.config.name} seed {self.config.seed}" if self.several else self.config.name

    @property
    def record(self) -> str:
        """The name of its record. It does not tell how many trainings there are, so that more can
        be added; `@` cannot be in a recipe's name."""
        name = self.config.name
        return f"{name}@{self.config.seed}.json" if self.number else f"{name}.json"


class Comparison(BaseModel):
    """Recipes with the same data and the same budget, which is either `kimg` or `minutes`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    configs: tuple[Config, ...] = Field(min_length=1)
    kimg: float | None = Field(None, gt=0, description="Thousands of images seen.")
    minutes: float | None = Field(None, gt=0, description="Minutes of training.")
    seeds: int = Field(
        1, ge=1, description="Trainings of each recipe, with its own seed and those that follow."
    )
    at_once: int | None = Field(None, ge=1, description="Most trainings that run side by side.")
    target: float | None = Field(
        None, description="The score whose time is told; empty means the worst final score."
    )

    @property
    def id(self) -> str:
        """A name with a digest of recipes, settings and budget, but not of folders and servers, nor
        of the number of seeds: more of them add to what is there."""
        places = {"workspace", "registry", "flow"}
        trees = [config.model_dump(mode="json", exclude=places) for config in self.configs]
        asked = json.dumps([trees, self.kimg, self.minutes], sort_keys=True)
        names = "-".join(config.name for config in self.configs)[:60]
        return f"{names}-{hashlib.sha256(asked.encode()).hexdigest()[:8]}"

    @property
    def trainings(self) -> tuple[Training, ...]:
        """All trainings: the first of each recipe, then the second of each, and so on."""
        return tuple(
            Training(recipes.change(config, {"seed": config.seed + number}), number, self.seeds)
            for number in range(self.seeds)
            for config in self.configs
        )

    @property
    def folder(self) -> Path:
        """The folder of the comparison's records and report."""
        return self.configs[0].workspace / "compare" / self.id

    @property
    def budget(self) -> str:
        """The budget in words."""
        if self.minutes is not None:
            return f"{self.minutes:g} min of training"
        return f"{self.kimg:g} thousand images"

    @property
    def cluster(self) -> ClusterConfig:
        """The `cluster` settings of the recipe that needs the most CPUs."""
        return max((config.cluster for config in self.configs), key=_cpus)

    def slots(self, cpus: float, gpus: float) -> int:
        """How many trainings run side by side on so many CPUs and GPUs; at least 1."""
        each, count = self.cluster, self.seeds * len(self.configs)
        room = cpus // _cpus(each)
        workers = max(config.cluster.workers for config in self.configs)
        if each.gpu != "no" and gpus >= workers:
            room = min(room, gpus // workers)
        return int(max(1, min(room, count, self.at_once or count)))


def _cpus(cluster: ClusterConfig) -> float:
    return cluster.workers * cluster.cpus_per_worker


def planned(
    names: Sequence[str],
    overrides: Sequence[str] = (),
    *,
    data: str | None = None,
    kimg: float | None = None,
    minutes: float | None = None,
    workers: int | None = None,
    seeds: int = 1,
    at_once: int | None = None,
    target: float | None = None,
) -> Comparison:
    """The comparison of these recipes, checked against the data.

    `overrides` hold for every recipe; `data` names the recipe whose data and protocol all get. Each
    is trained `seeds` times.
    Raises UserError, which names the recipe, if one cannot be trained with these settings.
    """
    for override in overrides:
        key = override.partition("=")[0].strip()
        if key in _DECIDED:
            raise UserError(f"--set {override}: {_DECIDED[key]}")
        if key == "cluster.workers" and workers is not None:
            raise UserError(f"--set {override}: --workers says it already")
    loaded = [_loaded(name, overrides) for name in names]
    base = _loaded(data, overrides) if data else loaded[0]
    chosen = [config.name for config in loaded]
    if twice := sorted({name for name in chosen if chosen.count(name) > 1}):
        raise UserError(f"two recipes are called {', '.join(twice)}: give one another `name`")
    if base.cluster.jobs is not None:
        raise UserError(f"cluster.jobs={base.cluster.jobs}: {_DECIDED['cluster.jobs']}")
    own_places = any(override.startswith("train.checkpoint_kimg") for override in overrides)
    configs: list[Config] = []
    shards = None
    for config in loaded:
        with _of(config.name):
            alike = _like(config, base, workers, seeds)
            recipes.change(alike, {"seed": alike.seed + seeds - 1})  # the last seed, too, is one
            shards = shards or plan_shards(
                alike.data, None, alike.workspace, store=alike.store
            )  # one for all
            shape = image_shape(alike, shards)
            stages = check(alike, shape, alike.cluster.workers)
            configs.append(_budgeted(alike, kimg, schedule_end(alike, stages), own_places))
    return Comparison(
        configs=tuple(configs),
        kimg=kimg,
        minutes=minutes,
        seeds=seeds,
        at_once=at_once,
        target=target,
    )


def _loaded(name: str, overrides: Sequence[str]) -> Config:
    recipes.find(name)  # its message names the recipe already
    with _of(Path(name).stem):
        return recipes.load(name, overrides)


@contextmanager
def _of(recipe: str) -> Iterator[None]:
    """Put the recipe's name before the message of a UserError raised inside."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{recipe}: {error}") from None


def _like(config: Config, base: Config, workers: int | None, seeds: int) -> Config:
    """The recipe with the data, the protocol and the places of `base`. With several seeds, all are
    scored on latents that do not depend on the seed."""
    # path lengths are measured once, at the end, and for all families alike
    metrics = [metric for metric in base.evaluate.metrics if metric != "path_length"]
    if not metrics:
        raise UserError("evaluate.metrics=[path_length]: give a measure that recipes are ranked by")
    changes: dict[str, Any] = {key: getattr(base, key) for key in _SHARED}
    changes |= {"evaluate.metrics": metrics, "cluster.address": base.cluster.address}
    if seeds > 1:
        changes["evaluate.latents"] = max(_SEEDLESS, base.evaluate.latents)
    if workers is not None:
        changes["cluster.workers"] = workers
    return recipes.with_absolute_paths(recipes.change(config, changes))


def _budgeted(config: Config, kimg: float | None, end: int, own_places: bool) -> Config:
    """The recipe with the budget in images, and with some scorings on the way.

    It is not known how many images a budget in time allows. The distance between scorings then
    follows from the length of the schedule, `end` images. Ticks are short, so that the end of the
    time is noticed.
    """
    changes = {"train.tick_kimg": min(config.train.tick_kimg, 1.0)}
    if kimg is not None:
        changes["train.total_kimg"] = kimg
    if not own_places:
        changes["train.checkpoint_kimg"] = (kimg or end / 1000) / _SCORINGS
    return recipes.change(config, changes)


# ---- the plan in words -------------------------------------------------------------------------


def describe(comparison: Comparison) -> str:
    """Some lines of text that tell a user what the comparison would do."""
    first = comparison.configs[0]
    data = plan_shards(first.data, None, first.workspace, store=first.store)
    shape = image_shape(first, data)
    evaluate = first.evaluate
    lines = [
        f"{comparison.id}: {_size(comparison)}",
        "",
        f"images      {data.images} of {shape.resolution} px, {first.data.colour}, "
        f"{len(shape.classes) or 'no'} classes, from {first.data.source}",
        f"scores      {evaluate.images} images each, {evaluate.extractor}: "
        f"{', '.join(evaluate.metrics)}; at the end {evaluate.path_length_images} paths in z",
        *_seeds(comparison),
        f"at once     {_side_by_side(comparison)}",
        f"report      {comparison.folder / 'compare.html'}",
        "",
        f"{'recipe':<24}{'family':<12}{'workers':>8}{'schedule':>14}{'scorings':>10}{'training':>14}",
    ]
    minutes = []
    for config in comparison.configs:
        stages = check(config, shape, config.cluster.workers)
        own, end = sum(stage.nimg for stage in stages), schedule_end(config, stages)
        minutes.append(_expected_minutes(comparison, config, end))
        shown = "unknown" if minutes[-1] is None else f"{minutes[-1]:.1f} min"
        lines.append(
            f"{config.name:<24}{config.family.name:<12}{config.cluster.workers:>8}"
            f"{f'{own / 1000:.4g} kimg':>14}{len(checkpoints(config, stages, end)):>10}{shown:>14}"
        )
    known = comparison.seeds * sum(expected for expected in minutes if expected is not None)
    unknown = minutes.count(None)
    lines += [
        "",
        f"in all      {known:.0f} min of training if one follows the other, without scoring"
        + (f"; {unknown} recipes have no earlier run to tell their speed" if unknown else ""),
    ]
    if comparison.folder.exists():
        lines.append("begun       before: what is done is not done again")
    return "\n".join(lines)


def _size(comparison: Comparison) -> str:
    """How many recipes and trainings there are, and the budget of each."""
    count, seeds = len(comparison.configs), comparison.seeds
    if seeds == 1:
        return f"{count} recipes, {comparison.budget} each"
    return f"{count} recipes, {seeds} trainings of each, {comparison.budget} each time"


def _seeds(comparison: Comparison) -> list[str]:
    """With several seeds, a line that tells them."""
    if comparison.seeds == 1:
        return []
    ends = {(config.seed, config.seed + comparison.seeds - 1) for config in comparison.configs}
    if len(ends) == 1:
        said = "{} to {} for each recipe".format(*ends.pop())
    else:
        said = "each recipe's own, and those that follow"
    return [f"seeds       {said}: {comparison.seeds * len(comparison.configs)} trainings"]


def _side_by_side(comparison: Comparison) -> str:
    most = f", at most {comparison.at_once}" if comparison.at_once else ""
    if not on_this_machine(comparison.cluster):
        return f"as many as the cluster has room for{most}"
    slots = comparison.slots(os.cpu_count() or 1, torch.cuda.device_count())
    return "one after the other" if slots == 1 else f"{slots} side by side"


def _expected_minutes(comparison: Comparison, config: Config, end: int) -> float | None:
    """How many minutes the recipe will train: its budget in time, or `end` images at the speed of
    its newest run, if that is less; None where neither is known."""
    speed = None
    for run_dir in reversed(run_folder.runs_of(config)):
        events = read_events(run_dir)
        if seconds := training_seconds(events, run_folder.reached(events)):
            speed = run_folder.reached(events) / seconds
            break
    if comparison.minutes is None:
        return None if speed is None else end / speed / 60
    return comparison.minutes if speed is None else min(comparison.minutes, end / speed / 60)
