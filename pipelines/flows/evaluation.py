"""Scores the checkpoints of a run that have no score yet. Nothing here imports an engine.

Training scores its checkpoints itself, except the last one of a run that was stopped, or killed
while it scored. New scores go where the trainer puts its own: beside the weights, and into the
event log, from which the registry takes them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from gan_train import recipes
from gan_train.config import Config, EvaluateConfig
from gan_train.errors import UserError
from gan_train.files.atomic import write_json
from gan_train.inference import Generator
from gan_train.metrics.scores import degenerate
from gan_train.runs import run_folder, shared
from gan_train.runs.audit import generator_damage
from gan_train.runs.checkpoint import SCORES, find_damage, list_checkpoints, precision_in
from gan_train.runs.events import EventLog
from gan_train.runs.integrity import REPORTED, Damaged, read_state
from gan_train.training.scoring import fresh_latents, reported_scores, stored_scores
from pipelines.registry.promotion import best_checkpoint

log = logging.getLogger(__name__)

Row = dict[str, Any]
Score = Callable[[Config, Path, Path], dict[str, Any]]
"""A function of a configuration, a folder of shards and a checkpoint's folder. It scores the
checkpoint by the configuration's `evaluate` settings, and returns scores and protocol."""


def evaluate_run(config: Config, run_dir: Path, score: Score) -> list[Row]:
    """Score the checkpoints that have no scores; returns the table of all scores, oldest first.

    Only scores of one protocol can stand in one table. If `config` has the `evaluate` settings that
    the run was started or resumed with, new scores are recorded: a second call scores nothing, and
    the registry sees them. With other `evaluate` settings, all checkpoints are scored anew for this
    table only, and nothing is written.

    Raises UserError when there is no checkpoint, or when the run is being trained.
    """
    own = trained_by(run_dir).evaluate
    if _protocol(config.evaluate) not in map(_protocol, (own, started_by(run_dir).evaluate)):
        shards = run_folder.shards_of(run_dir)
        rows = [
            {"kimg": int(path.name) / 1000, **score(config, shards, path)["scores"]}
            for path in reversed(list_checkpoints(run_dir))
            if _whole(path)
        ]
    else:
        own = own.model_validate(own.model_dump() | {"batch": config.evaluate.batch})
        config = recipes.change(config, {"evaluate": own})
        if waiting(run_dir):
            with run_folder.exclusive(run_dir), shared.sending(run_dir):
                for path in waiting(run_dir):
                    record(run_dir, path, _scored(config, run_dir, path, score))
        rows = run_folder.score_table(run_dir)
    if not rows:
        raise UserError(f"{run_dir.name} has no checkpoint to score yet")
    return rows


def report_best(config: Config, run_dir: Path, score: Score) -> None:
    """Score the best checkpoint of a run anew, on latents that did not choose it, where training
    has not done so: it was stopped, or is of an earlier version of this project.

    The scores lie beside the checkpoint as training puts them, and `promote` registers them. Where
    no checkpoint is fit to be registered, or its task takes pictures, there is nothing to do.
    """
    final = None if config.registry.partly_grown else config.data.resolution
    best = best_checkpoint(run_folder.read_events(run_dir), final)
    if best is None:
        return
    folder = run_dir / best["path"]
    if reported_scores(folder, best) is not None:
        return
    if damage := generator_damage(folder):
        log.warning("%s is not scored anew: %s", folder, damage)
        return
    if Generator.load(folder).task != "generate":
        return
    scored = score(fresh(config, run_dir), run_folder.shards_of(run_dir), folder)
    write_json(folder / REPORTED, scored)


def fresh(config: Config, run_dir: Path) -> Config:
    """The configuration by which the best checkpoint of a run is scored anew, and whatever is to be
    compared with it."""
    own = trained_by(run_dir).evaluate.model_dump() | {"batch": config.evaluate.batch}
    return fresh_latents(recipes.change(config, {"evaluate": EvaluateConfig(**own)}))


def waiting(run_dir: Path) -> list[Path]:
    """The undamaged checkpoints whose scores are not in the event log, oldest first."""
    events = run_folder.read_events(run_dir)
    told = {event["nimg"] for event in events if event["kind"] == "checkpoint"}
    left = [path for path in reversed(list_checkpoints(run_dir)) if int(path.name) not in told]
    return [path for path in left if _whole(path)]


def record(run_dir: Path, checkpoint: Path, scored: dict[str, Any]) -> None:
    """Put the scores of a checkpoint where the trainer puts them; call it inside `exclusive`."""
    write_json(checkpoint / SCORES, scored)
    path = str(checkpoint.relative_to(run_dir))
    more = {"path": path, "precision": precision_in(checkpoint)}
    if why := degenerate(scored["scores"]):
        log.error("DEGENERATE CHECKPOINT %s: %s; it is never the best one", path, why)
        more["degenerate"] = why
    level = Generator.load(checkpoint).adversary.status()
    EventLog(run_dir).append("checkpoint", int(checkpoint.name), **scored | more | level)


def started_by(run_dir: Path) -> Config:
    """The configuration that a run was started with."""
    return run_folder.configuration(run_dir)


def trained_by(run_dir: Path) -> Config:
    """The configuration that a run's newest checkpoint was trained with: `evaluate` may have
    changed since the start."""
    for path in list_checkpoints(run_dir):
        with suppress(Damaged):  # an earlier one tells as well
            return recipes.check(read_state(path).config)
    return started_by(run_dir)


def _scored(config: Config, run_dir: Path, checkpoint: Path, score: Score) -> dict[str, Any]:
    """The scores of a checkpoint: those stored beside it, if the run was killed before it logged
    them, or else new ones."""
    if (known := stored_scores(checkpoint)) is not None:
        return known
    return score(config, run_folder.shards_of(run_dir), checkpoint)


def _protocol(settings: EvaluateConfig) -> dict[str, Any]:
    """The `evaluate` settings that change scores."""
    return settings.model_dump(mode="json", exclude={"batch"})


def _whole(checkpoint: Path) -> bool:
    fault = find_damage(checkpoint)
    if fault is not None:
        log.warning("damaged checkpoint passed over: %s: %s", checkpoint, fault)
    return fault is None
