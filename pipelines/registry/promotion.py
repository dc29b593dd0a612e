"""Decides which checkpoint is the best, and which version is champion. Pure functions.

Every score that decides is better when it is lower (`gan_train/metrics/scores.py`). Two scores are
compared only under one protocol (data set, extractor, resize, N); `gan_train/metrics/protocol.py`
says when that holds.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from gan_train.metrics.protocol import comparable
from gan_train.metrics.scores import degenerate, headline, scores_of

Alias = Literal["champion", "challenger"]
CHAMPION: Alias = "champion"
CHALLENGER: Alias = "challenger"
RESCORED_TAG = "rescored"
"""The tag of a version with the scores that it got later, on other data than those it was trained
on: JSON with `scores` and `protocol`."""


@dataclass(frozen=True)
class Standing:
    """What is compared of a version or a checkpoint: its deciding score, and how that was
    measured."""

    name: str  # what was scored, for messages: "version 3", "the checkpoint at 4,000 images"
    metric: str
    value: float
    protocol: Mapping[str, Any]


@dataclass(frozen=True)
class Decision:
    """The alias that a new version gets, and why, in a sentence for people."""

    alias: Alias
    reason: str


def incomparable(a: Standing, b: Standing) -> str | None:
    """Why the two scores must not be compared; None when they may be."""
    if a.metric != b.metric:
        return f"{a.metric} and {b.metric} are different metrics"
    return comparable(a.protocol, b.protocol)


def decide(candidate: Standing, champion: Standing | None) -> Decision:
    """The candidate's alias: champion only if its score is better, under the same protocol."""
    value = f"{candidate.metric} {candidate.value:.4g}"
    if not math.isfinite(candidate.value):
        return Decision(CHALLENGER, f"its {value} is no number to compare")
    if champion is None:
        return Decision(CHAMPION, f"first scored version, {value}")
    against = f"champion {champion.name}"
    if why := incomparable(candidate, champion):
        return Decision(CHALLENGER, f"not comparable with {against}: {why}")
    if not math.isfinite(champion.value):
        return Decision(CHAMPION, f"{value}; the score of {against} is no number")
    if candidate.value < champion.value:
        return Decision(CHAMPION, f"{value} is better than {champion.value:.4g} of {against}")
    if candidate.value == champion.value:
        return Decision(CHALLENGER, f"{value} equals that of {against}, which stays")
    return Decision(CHALLENGER, f"{value} is worse than {champion.value:.4g} of {against}")


def refusal(new: Standing, now: Standing | None) -> str | None:
    """Why a person must not make `new` champion without `--force`; None when they may. A worse
    score is no reason: whoever promotes by hand has looked at the images."""
    if not math.isfinite(new.value):
        return f"its {new.metric} {new.value} is no number to compare"
    why = incomparable(new, now) if now is not None else None
    return None if why is None else f"its score cannot be compared with the champion's: {why}"


def best_checkpoint(
    events: Iterable[Mapping[str, Any]], resolution: int | None = None
) -> Mapping[str, Any] | None:
    """The `checkpoint` event with the lowest finite deciding score; of equal ones, the earliest.

    Only checkpoints that were scored like the newest one count: a resumed run may have changed its
    protocol. Degenerate ones never count, and of a family that grows only those of `resolution`, or
    without it of the highest one that was scored.
    """
    scored = [
        (event, standing)
        for event in events
        if event["kind"] == "checkpoint" and (standing := event_standing(event)) is not None
    ]
    if not scored:
        return None
    newest = scored[-1][1]
    if resolution is None:
        resolution = max(event.get("resolution", 0) for event, _ in scored)
    fit = [
        (event, standing)
        for event, standing in scored
        if incomparable(standing, newest) is None
        and degenerate(event["scores"]) is None
        and event.get("resolution", resolution) == resolution
    ]
    return min(fit, key=lambda pair: pair[1].value)[0] if fit else None


def why_none(events: Iterable[Mapping[str, Any]], run: str, resolution: int | None) -> str:
    """Why `best_checkpoint` finds none in the log of a run, and what to do."""
    scored = [event for event in events if event["kind"] == "checkpoint" and event_standing(event)]
    if not scored:
        return (
            f"{run} has no checkpoint with a score to register: let it reach a checkpoint "
            "(train.checkpoint_kimg), with `frechet` among evaluate.metrics"
        )
    reached = max(event.get("resolution", resolution or 0) for event in scored)
    if resolution is not None and reached < resolution:
        return (
            f"{run} has grown to {reached:.0f} of {resolution} px, and only the final resolution "
            f"is registered: go on with --resume {run}, or add --set registry.partly_grown=true"
        )
    why = degenerate(scored[-1]["scores"]) or "its score is no finite number"
    return (
        f"no checkpoint of {run} is fit to be registered; the newest is degenerate: {why}. Look at "
        "its samples, and train anew with other settings"
    )


def event_standing(event: Mapping[str, Any]) -> Standing | None:
    """The deciding score of a `checkpoint` event; None when it was not scored."""
    protocol = event.get("protocol") or {}
    score = headline(scores_of(event.get("scores") or {}, protocol))
    if score is None:
        return None
    name = f"the checkpoint at {event['nimg']:,} images"
    return Standing(name, score.name, float(score.value), protocol)


def version_standing(
    version: str | int, tags: Mapping[str, str], like: Mapping[str, Any] | None = None
) -> Standing:
    """The deciding score that a version with these tags was registered with; not a number if it has
    none. If that is not comparable with scores under the protocol `like`, but the version was
    scored anew under such a protocol, the new score counts."""
    name = f"version {version}"
    registered = Standing(
        name=name,
        metric=tags.get("metric", "none"),
        value=float(tags.get("score", "nan")),
        protocol=json.loads(tags.get("protocol", "{}")),
    )
    if like is None or comparable(registered.protocol, like) is None or RESCORED_TAG not in tags:
        return registered
    later = json.loads(tags[RESCORED_TAG])
    score = headline(scores_of(later["scores"], later["protocol"]))
    if score is None or comparable(later["protocol"], like) is not None:
        return registered
    return Standing(name, score.name, float(score.value), later["protocol"])
