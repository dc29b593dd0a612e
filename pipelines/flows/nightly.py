"""The flow `nightly`: shard what is new, and train on from the champion.

    gan-train nightly demo

The stored set grows (`data.grow`), so only new images are sharded. Where nothing is new since the
newest version, the flow says so and ends. Otherwise the champion is scored anew, because its score
belongs to other data, and a run begins with its networks and with a seed of its own. The seed
depends on the recipe's seed and on the data alone, so the same night can be repeated. It becomes
champion if it is better beyond chance.
"""

from __future__ import annotations

import logging
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefect import flow
from prefect.states import Cancelled, Completed

from gan_train import recipes
from gan_train.config import Config
from gan_train.data.index import Index
from gan_train.data.planning import ShardPlan
from gan_train.errors import UserError
from gan_train.rng import derive
from gan_train.runs import run_folder, warm_start
from gan_train.text import markdown
from gan_train.training.scoring import fresh_latents
from pipelines.compute import sharding
from pipelines.compute.cluster import connected
from pipelines.flows import artifacts
from pipelines.flows.pipeline import (
    final_state,
    promote_flow,
    score_checkpoint,
    shard_flow,
    stop_job,
    train_flow,
)
from pipelines.flows.plan import growing
from pipelines.registry import champions, versions
from pipelines.registry.promotion import Standing, event_standing

log = logging.getLogger(__name__)

NOTHING_NEW = "Nothing new"
"""The name of the state in which a night ends that has nothing to train on."""


@dataclass(frozen=True)
class Start:
    """How a night's training begins, in words, and the champion's score on the night's data."""

    config: Config
    begins: str
    champion: versions.Registration | None
    before: Standing | None


@flow(
    name="nightly",
    flow_run_name="nightly-{config.name}",
    on_cancellation=[stop_job],
    on_crashed=[stop_job],
)
def nightly_flow(config: Config) -> Any:
    """Shard what is new, train from the champion, score, register; promote beyond chance.

    Returns the run's folder and its registration. Ends as Completed, named "Nothing new", where the
    source has no image that the newest version was not trained on. A night that was stopped or
    killed goes on, if nothing has come since. Paths in `config` may be relative to where the
    process stands.
    """
    config = growing(recipes.with_absolute_paths(config))
    data = sharding.plan_of(config)
    if data.fault:
        artifacts.alarm(config.name, data.fault)
    with sharding.planned(config, data):
        index = Index.load(shard_flow(config))
        trained = champions.trained_on(config)
        if (version := trained.get(index.content_hash)) is not None:
            said = f"nothing new: version {version} was trained on these {index.samples:,} images"
            artifacts.note("night", said.capitalize() + ".")
            return Completed(message=said, name=NOTHING_NEW)
        with nullcontext() if config.cluster.jobs else connected(config.cluster):
            start = _start(config, data, index)
            resume = _begun(start.config, data.directory)
            state = final_state(train_flow, start.config, resume)
        if state.is_cancelled():
            return Cancelled(message=state.message)
        run_dir: Path = state.result()
        registration = promote_flow(start.config, run_dir.name)
    earlier = _earlier(config, data, trained)
    artifacts.note("night", _changes(data, index, earlier, start, registration))
    return run_dir, registration


def seed_of(config: Config, content_hash: str) -> int:
    """The seed of a night's run: a function of the recipe's seed and the data."""
    return derive(config.seed, "nightly", content_hash) % 2**31


def _start(config: Config, data: ShardPlan, index: Index) -> Start:
    """The night's configuration, with the champion scored on the night's data if there is one."""
    config = recipes.change(config, {"seed": seed_of(config, index.content_hash)})
    champion = versions.champion(config)
    if champion is None:
        return Start(config, "from new networks, as there is no champion yet", None, None)
    before = _scored_anew(config, data.directory, champion)
    name = f"version {champion.version}, the champion"
    folder = champions.checkpoint_of(config, champion.version)
    why: str | None = "its checkpoint is not in this workspace"
    if folder is not None:
        place = str(folder)
        if config.store is not None:  # where the workers of all machines find it
            place = run_folder.store_of(config, folder).url
        adversary = config.family.build(index.image_shape, config.train.batch)
        why = warm_start.misfit(folder, adversary)
    if why is not None:
        log.warning("the run does not begin with %s: %s", name, why)
        return Start(config, f"from new networks and not with {name}: {why}", champion, before)
    config = recipes.change(config, {"train.start_from": place})
    return Start(config, f"with the networks of {name}", champion, before)


def _scored_anew(config: Config, shards: Path, champion: versions.Registration) -> Standing | None:
    """The champion's score on these shards, which its version keeps; None, with a warning, if it
    cannot make such images."""
    fresh = fresh_latents(config)  # on which the night's best checkpoint will be scored
    try:
        scored = score_checkpoint(fresh, shards, versions.download(config, "champion"))
    except UserError as error:
        log.warning("version %d, the champion, is not scored: %s", champion.version, error)
        return None
    champions.record_score(config, champion.version, scored)
    return event_standing({"nimg": 0, **scored})


def _begun(config: Config, shards: Path) -> str | None:
    """The run to go on with: the newest one of this very night. None if there is none."""
    wanted = versions.config_hash(config)
    for run_dir in reversed(run_folder.runs_of(config)):
        if versions.config_hash(run_folder.configuration(run_dir)) == wanted:
            begun = run_folder.find(config, run_dir.name)  # out of the bucket, if it is in one
            if (begun / run_folder.SHARDS).resolve() == shards.resolve():
                return begun.name
    return None


# ---- what changed ------------------------------------------------------------------------------


def _changes(
    data: ShardPlan,
    index: Index,
    earlier: Index | None,
    start: Start,
    registration: versions.Registration,
) -> str:
    """What the night brought, in Markdown."""
    became = "is the new champion" if registration.appointed else f"is {registration.alias}"
    lines = [
        f"**Version {registration.version} {became}**: {markdown(registration.reason)}.",
        "",
        _data_in_words(data, index, earlier),
        "",
        f"The run began {start.begins}; its seed is {start.config.seed}.",
        "",
        *_score_table(start, registration),
        *_class_table(index, earlier),
    ]
    return "\n".join(lines)


def _earlier(config: Config, data: ShardPlan, trained: dict[str, int]) -> Index | None:
    """The newest of the sets that this one grew from on which a version was trained."""
    for plan in reversed(data.before):
        with suppress(UserError):  # its folder may lack an index: all that is needed are its shards
            index = sharding.index_of(config, plan.directory)
            if index.content_hash in trained:
                return index
    return None


def _data_in_words(data: ShardPlan, index: Index, earlier: Index | None) -> str:
    if earlier is not None:
        new, shards = index.samples - earlier.samples, len(index.shards) - len(earlier.shards)
        said = f"**{new:,} images are new**, in {shards} new shards; {index.samples:,} are stored."
    else:
        said = f"**All {index.samples:,} images are new to this model.**"
    bad = f" {index.quarantined} files are in quarantine." if index.quarantined else ""
    fault = f" {markdown(data.fault[0].upper() + data.fault[1:])}." if data.fault else ""
    return f"{said}{bad}{fault} Content hash `{index.content_hash[:16]}`."


def _score_table(start: Start, registration: versions.Registration) -> list[str]:
    head = [f"| on tonight's data | {registration.metric} |", "|---|---|"]
    tonight = f"| version {registration.version}, of tonight | {registration.text} |"
    if start.champion is None:
        return [*head, tonight, ""]
    before = start.before.text if start.before else "not scored"
    return [*head, f"| version {start.champion.version}, champion before | {before} |", tonight, ""]


def _class_table(index: Index, earlier: Index | None) -> list[str]:
    """The number of images of each class whose number has changed."""
    if not index.classes or earlier is None:
        return []
    rows = [
        f"| {markdown(name)} | {before:,} | {now:,} |"
        for name, before, now in zip(
            index.classes, earlier.class_counts, index.class_counts, strict=True
        )
        if before != now
    ]
    return ["| class | images before | now |", "|---|---|---|", *rows]
