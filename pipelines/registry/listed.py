"""Lists the versions of a registered model, and describes one. Only reads, and makes nothing in
MLflow."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from statistics import stdev

from gan_train.config import Config
from gan_train.errors import UserError
from gan_train.metrics.scores import number
from pipelines.registry.promotion import (
    CHALLENGER,
    CHAMPION,
    alike,
    scores_of_trainings,
    version_standing,
)
from pipelines.registry.reigns import Reign, spans
from pipelines.registry.reigns import of as reigns_of
from pipelines.registry.tracking import (
    connect,
    connect_to_read,
    exists,
    failures,
    is_missing,
    tracking_uri,
)
from pipelines.registry.versions import find_version, model_name


@dataclass(frozen=True)
class Listed:
    """A version as a table shows it."""

    number: int
    alias: str
    """`champion`, `challenger`, an alias that a person gave, or empty."""
    measure: str
    """The name of the deciding score; empty for an import, which has none."""
    score: float
    text: str
    """The deciding score with its error over samples."""
    seeds: str
    """How far the scores of trainings deviate that differ in their seed alone, and how many there
    are; `-` where there is one."""
    images_seen: int
    run: str
    """The name of the run that trained it."""
    registered: datetime


@dataclass(frozen=True)
class Described:
    """What is known of a version beside its weights."""

    model: str
    number: int
    aliases: tuple[str, ...]
    """The champion's comes first."""
    measure: str
    """The name of the deciding score; empty for an import, which has none."""
    scores: dict[str, float]
    licence: str | None
    """The licence of the images that it was trained on; None where it is not recorded."""


def place(config: Config) -> str:
    """The registered model and where it is looked for, in words."""
    return f"{model_name(config)} in MLflow at {tracking_uri(config)}"


def versions(config: Config) -> list[Listed]:
    """The versions of the recipe's registered model, the newest first; empty if there are none.

    Raises UserError when the tracking server is away.
    """
    name = model_name(config)
    if not exists(config):
        return []
    try:
        client = connect(config)
        found = list(client.search_model_versions(f"name = '{name}'", max_results=1000))
        aliases: dict[str, list[str]] = {}
        if found:
            for alias, number in client.get_registered_model(name).aliases.items():
                aliases.setdefault(str(number), []).append(alias)
        trained_by = {version.run_id for version in found if version.run_id}
        names = {run: str(client.get_run(run).info.run_name) for run in trained_by}
    except failures() as error:
        raise _away(config, error) from error
    known = sorted(found, key=lambda version: int(version.version))
    oldest_first = [(version.run_id or "", version.tags) for version in known]
    listed = [
        Listed(
            number=int(version.version),
            alias=", ".join(_in_order(aliases.get(str(version.version), []))),
            measure=version.tags.get("metric", ""),
            score=float(version.tags.get("score", "nan")),
            text=version_standing(version.version, version.tags).text,
            seeds=_seeds(version.tags, oldest_first),
            images_seen=int(version.tags.get("images_seen", 0)),
            run=names.get(version.run_id or "", ""),
            registered=datetime.fromtimestamp(version.creation_timestamp / 1000),
        )
        for version in found
    ]
    return sorted(listed, key=lambda version: -version.number)


def champions(config: Config) -> list[tuple[Reign, str]]:
    """Who was champion from when to when, and why, the newest first; each reign with its end, which
    is empty for the one that lasts.

    Raises UserError when the tracking server is away.
    """
    try:
        return spans(reigns_of(connect_to_read(config).get_registered_model(model_name(config))))
    except failures() as error:
        if is_missing(error):
            return []
        raise _away(config, error) from error


def described(config: Config, version_or_alias: str) -> Described:
    """The version of the recipe's registered model with this number or alias.

    Raises UserError when there is no such version, or the tracking server is away.
    """
    try:
        client = connect_to_read(config)
        found = find_version(client, config, version_or_alias)
        run = client.get_run(found.run_id) if found.run_id else None
    except failures() as error:
        raise _away(config, error) from error
    return Described(
        model=found.name,
        number=int(found.version),
        aliases=tuple(_in_order(found.aliases)),
        measure=found.tags.get("metric", ""),
        scores=json.loads(found.tags.get("scores", "{}")),
        licence=(run.data.params.get("data.licence") if run else None) or None,
    )


def _seeds(tags: Mapping[str, str], known: Sequence[tuple[str, Mapping[str, str]]]) -> str:
    """How far the versions of equal configurations deviate that were scored alike; `known` are the
    run and the tags of each version, the oldest first."""
    trainings = scores_of_trainings(alike(known, tags), version_standing(0, tags))
    if len(trainings) < 2:
        return "-"
    return f"{number(stdev(trainings))} ({len(trainings)})"


def _in_order(aliases: Iterable[str]) -> list[str]:
    """The aliases that `promotion.py` gives come before others."""
    order: dict[str, int] = {CHAMPION: 0, CHALLENGER: 1}
    return sorted(aliases, key=lambda alias: (order.get(alias, 2), alias))


def _away(config: Config, error: Exception) -> UserError:
    first = str(error).splitlines()[0][:200]
    return UserError(f"MLflow at {tracking_uri(config)} does not answer ({first})")
