"""Which checkpoint is the best, and whether it may be champion: pure decisions, nothing else.

Every distance here is better when it is lower. Two scores are compared only under one protocol
(data set, extractor, resize, N); `gan_train/metrics/protocol.py` says when that holds.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from gan_train.metrics.protocol import comparable

OF_REAL_IMAGES = ("_null", "_real")
"""Endings of what real images get: `fid_null` is half of them against half."""

OF_BASELINES = ("_bicubic", "_identity")
"""Endings of what pictures get without any network."""
REFERENCES = (*OF_BASELINES, *OF_REAL_IMAGES)
"""What stands beside a measure, the first that there is."""

Alias = Literal["champion", "challenger"]
CHAMPION: Alias = "champion"
CHALLENGER: Alias = "challenger"


@dataclass(frozen=True)
class Score:
    """One generator's headline score. `protocol` is how it was measured."""

    name: str  # what is scored, for messages: "version 3", "checkpoint at 4000 images"
    metric: str
    value: float
    protocol: Mapping[str, Any]


@dataclass(frozen=True)
class Decision:
    """The alias a new version gets, and why, in a sentence for people."""

    alias: Alias
    reason: str


def headline(scores: Mapping[str, Any]) -> str | None:
    """The metric that decides: `fid` where there is one, else the Fréchet distance `fd_...` of
    another extractor, else the perceptual distance to true pictures; None when there is none. Of
    one kind the shortest name counts, which is the mean of those with a direction or a set."""
    names = [name for name in scores if not name.endswith(REFERENCES)]
    for kind in ("fid", "fd_", "perceptual"):
        if found := [name for name in names if name.startswith(kind)]:
            return min(found, key=lambda name: (len(name), name))
    return None


def incomparable(a: Score, b: Score) -> str | None:
    """Why the two must not be compared; None when they may be."""
    if a.metric != b.metric:
        return f"{a.metric} and {b.metric} are different metrics"
    return comparable(a.protocol, b.protocol)


def decide(candidate: Score, champion: Score | None) -> Decision:
    """Champion only if better than the present one under the same protocol."""
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


def refusal(new: Score, now: Score | None) -> str | None:
    """Why a person must not make `new` champion without insisting; None when that is fine. A worse
    score is: whoever promotes by hand has looked at the images."""
    if not math.isfinite(new.value):
        return f"its {new.metric} {new.value} is no number to compare"
    why = incomparable(new, now) if now is not None else None
    return None if why is None else f"its score cannot be compared with the champion's: {why}"


def best_checkpoint(events: Iterable[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The `checkpoint` event with the lowest finite headline score, the earlier one of equals.

    Only those scored like the newest one count: a resumed run may have changed its protocol.
    """
    scored = [
        (event, score)
        for event in events
        if event["kind"] == "checkpoint" and (score := event_score(event)) is not None
    ]
    if not scored:
        return None
    newest = scored[-1][1]
    finite = [
        (event, score)
        for event, score in scored
        if incomparable(score, newest) is None and math.isfinite(score.value)
    ]
    return min(finite, key=lambda pair: pair[1].value)[0] if finite else None


def event_score(event: Mapping[str, Any]) -> Score | None:
    """The headline score of a `checkpoint` event; None when it was not scored."""
    scores = event.get("scores") or {}
    metric = headline(scores)
    if metric is None:
        return None
    name = f"the checkpoint at {event['nimg']:,} images"
    return Score(name, metric, float(scores[metric]), event.get("protocol") or {})
