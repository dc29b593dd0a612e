"""Decides which checkpoint is the best, and which version is champion. Pure functions.

Every score that decides is better when it is lower (`gan_train/metrics/scores.py`). Two scores are
compared only under one protocol (data set, extractor, resize, N, latents);
`gan_train/metrics/protocol.py` says when that holds. A version becomes champion only where chance
does not explain that its score is lower (`evidence.py`); ties keep the champion. One of the
champion's own configuration is compared with the champion, and one of another configuration with
the mean of the champion's equals, as far as they are known, where that is surer.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from gan_train.diagnosis.signs import broken
from gan_train.metrics.protocol import comparable
from gan_train.metrics.scores import Score, degenerate, headline, number, scores_of, with_error
from pipelines.registry.evidence import (
    ENOUGH,
    Comparison,
    Deviation,
    Measured,
    beyond_samples,
    compare,
    compare_with_mean,
    deviation_of,
    percent,
)

Alias = Literal["champion", "challenger"]
CHAMPION: Alias = "champion"
CHALLENGER: Alias = "challenger"
RECIPE_TAG = "recipe_hash"
"""The tag of a version that all trainings of its configuration share, whatever their seed."""
START_TAG = "start_from"
"""The tag of a version whose training went on from networks that another had made: their folder."""
BLOCKS_TAG = "mlflow.gan_train.blocks"
"""The tag of a version with the influences of blocks of images on its score, as JSON. MLflow's page
leaves out tags of this kind: these numbers would fill its table, and nobody reads them there."""
RESCORED_TAG = "rescored"
"""The tag of a version with the scores that it got later, on other data than those it was trained
on: JSON with `scores`, `protocol` and `blocks`."""


@dataclass(frozen=True)
class Standing:
    """What is compared of a version or a checkpoint: its deciding score, and how that was
    measured."""

    name: str  # what was scored, for messages: "version 3", "the checkpoint at 4,000 images"
    metric: str
    value: float
    protocol: Mapping[str, Any]
    error: float | None = None
    """The standard error over samples."""
    blocks: tuple[float, ...] = ()
    continued: bool = False
    """Whether the training went on from networks that another had made."""

    @property
    def text(self) -> str:
        """The value with its error."""
        return with_error(self.value, self.error)


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


def decide(
    candidate: Standing,
    champion: Standing | None,
    known: Deviation | None = None,
    equals: Sequence[float] = (),
) -> Decision:
    """The candidate's alias: champion only if it is better, under the same protocol. `known` is the
    deviation of scores between seeds, if it is. `equals` are the scores of trainings that differ
    from the champion's in their seed alone, its own among them, where the candidate's differs in
    more. Scores of earlier versions of this project have no error: where both lack it, the lower
    one is better."""
    value = f"{candidate.metric} {candidate.text}"
    if not math.isfinite(candidate.value):
        return Decision(CHALLENGER, f"its {candidate.metric} {candidate.value} is no number")
    if champion is None:
        return Decision(CHAMPION, f"first scored version, {value}")
    against = f"champion {champion.name}"
    if why := incomparable(candidate, champion):
        return Decision(CHALLENGER, f"not comparable with {against}: {why}")
    if not math.isfinite(champion.value):
        return Decision(CHAMPION, f"{value}; the score of {against} is no number")
    if candidate.value == champion.value:
        return Decision(CHALLENGER, f"{value} equals that of {against}, which stays")
    lower = candidate.value < champion.value
    found = _weighed(candidate, champion, known)
    if lower and known is not None and len(equals) > 1 and not candidate.continued:
        of_mean = compare_with_mean(_measured(candidate, champion)[0], equals, known)
        if found is None or of_mean.sure > found.sure:
            return _against_mean(candidate, champion, equals, of_mean)
    if found is None:
        word, alias = ("better", CHAMPION) if lower else ("worse", CHALLENGER)
        return Decision(alias, f"{value} is {word} than {champion.text} of {against}")
    if found.verdict == "tie":
        return Decision(
            CHALLENGER,
            f"{value} ties with {champion.text} of {against}, which stays: better by "
            f"{percent(found.sure)} ({_seeds(found)}); {found.more}",
        )
    sure = found.sure if lower else 1 - found.sure
    return Decision(
        CHAMPION if found.verdict == "better" else CHALLENGER,
        f"{value} is {found.verdict} than {champion.text} of {against}, {percent(sure)} sure "
        f"({_seeds(found)})",
    )


def _against_mean(
    candidate: Standing, champion: Standing, equals: Sequence[float], found: Comparison
) -> Decision:
    """The alias of a candidate with the lower score, of another configuration than the champion's.
    It must be ahead of the mean of the champion's equals (`found`), or luck explains it; and of the
    champion itself, or the champion would get worse."""
    value = f"{candidate.metric} {candidate.text}"
    theirs = f"champion {champion.name} ({champion.text})"
    mean = f"the mean {number(sum(equals) / len(equals))} of {len(equals)} trainings like {theirs}"
    sure, seeds = percent(found.sure), _seeds(found)
    if found.verdict != "better":
        reason = f"{value} ties with {mean}, which stays: better by {sure} ({seeds}); {found.more}"
        return Decision(CHALLENGER, reason)
    reason = f"{value} is better than {mean}, {sure} sure ({seeds})"
    if not beyond_samples(*_measured(candidate, champion)):
        return Decision(CHALLENGER, f"{reason}, but it ties with that champion itself, which stays")
    return Decision(CHAMPION, reason)


def sure_of(newer: Standing, older: Standing, known: Deviation | None) -> str | None:
    """In a sentence, whether chance explains that one of two versions has the lower score; None
    where nobody can tell, because the scores have no errors or must not be compared."""
    finite = math.isfinite(newer.value) and math.isfinite(older.value)
    if not finite or incomparable(newer, older) is not None or newer.value == older.value:
        return None
    found = _weighed(newer, older, known)
    if found is None:
        return None
    shown = percent(found.sure if newer.value < older.value else 1 - found.sure)
    if found.verdict != "tie":
        return f"Between two trainings that is better, {shown} sure ({_seeds(found)})."
    needed = percent(ENOUGH)
    return (
        f"Between two trainings that is a tie: {shown} sure, where better takes {needed} "
        f"({_seeds(found)}); {found.more}."
    )


def _weighed(candidate: Standing, champion: Standing, known: Deviation | None) -> Comparison | None:
    """The comparison of two scores under one protocol; None where neither has an error."""
    if candidate.error is None and champion.error is None:
        return None
    return compare(*_measured(candidate, champion), known, candidate.continued)


def _measured(candidate: Standing, champion: Standing) -> tuple[Measured, Measured]:
    """Two scores under one protocol. Where only one has an error, it is that of the other, too,
    which had as many images; where neither has, it is 0."""
    images = int(candidate.protocol.get("images", 0))
    ours, theirs = candidate.error, champion.error
    return (
        Measured(candidate.value, _first_known(ours, theirs), images, candidate.blocks),
        Measured(champion.value, _first_known(theirs, ours), images, champion.blocks),
    )


def _seeds(found: Comparison) -> str:
    return f"between seeds {number(found.deviation.value)}, {found.deviation.origin}"


def _first_known(*errors: float | None) -> float:
    return next((error for error in errors if error is not None), 0.0)


Version = tuple[str, Mapping[str, str]]
"""The run and the tags of a version."""


def deviation_between_seeds(versions: Iterable[Version], like: Standing) -> Deviation | None:
    """The deviation of scores between trainings of equal configurations, from versions that were
    scored like `like`, the oldest first; None where they tell too little."""
    groups: dict[str, list[Version]] = {}
    for run, tags in versions:
        if RECIPE_TAG in tags:
            groups.setdefault(tags[RECIPE_TAG], []).append((run, tags))
    return deviation_of(scores_of_trainings(group, like) for group in groups.values())


def scores_of_equals(
    versions: Iterable[Version], champion: Mapping[str, str], new: Mapping[str, str], like: Standing
) -> list[float]:
    """The scores of the trainings that differ from the champion's in their seed alone, its own
    among them, where a new version's differs in more; else, or where that is not known, none.
    `champion` and `new` are the tags of these two, `versions` all, the oldest first."""
    if RECIPE_TAG not in new or new[RECIPE_TAG] == champion.get(RECIPE_TAG):
        return []
    return scores_of_trainings(alike(versions, champion), like)


def alike(versions: Iterable[Version], tags: Mapping[str, str]) -> list[Version]:
    """The versions whose configuration differs in its seed alone from that of the version with
    these tags, itself among them; none where that is not recorded."""
    recipe = tags.get(RECIPE_TAG)
    return [one for one in versions if recipe is not None and one[1].get(RECIPE_TAG) == recipe]


def scores_of_trainings(versions: Iterable[Version], like: Standing) -> list[float]:
    """The deciding scores of versions that were scored like `like`, the oldest first. Of a run, the
    newest version counts."""
    found = {}
    for run, tags in versions:
        standing = version_standing(0, tags, like.protocol)
        if math.isfinite(standing.value) and incomparable(standing, like) is None:
            found[run] = standing.value
    return list(found.values())


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
    protocol. Degenerate ones and those of a broken state (`gan_train/diagnosis`) never count, and
    of a family that grows only those of `resolution`, or without it of the highest one that was
    scored.
    """
    events = list(events)
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
    fit.sort(key=lambda pair: pair[1].value)
    healthy = (event for event, _ in fit if broken(events, event["nimg"]) is None)
    return next(healthy, None)


def why_none(events: Iterable[Mapping[str, Any]], run: str, resolution: int | None) -> str:
    """Why `best_checkpoint` finds none in the log of a run, and what to do."""
    events = list(events)
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
    if why := degenerate(scored[-1]["scores"]):
        why = f"degenerate: {why}"
    elif ill := broken(events, scored[-1]["nimg"]):
        why = f"that of a broken state: {ill}"
    else:
        why = "degenerate: its score is no finite number"
    return (
        f"no checkpoint of {run} is fit to be registered; the newest is {why}. Look at its "
        "samples, and train anew with other settings"
    )


def event_standing(event: Mapping[str, Any]) -> Standing | None:
    """The deciding score of a `checkpoint` event; None when it was not scored."""
    protocol = event.get("protocol") or {}
    score = headline(scores_of(event.get("scores") or {}, protocol))
    if score is None:
        return None
    return _standing(f"the checkpoint at {event['nimg']:,} images", score, event)


def _standing(name: str, score: Score, scored: Mapping[str, Any]) -> Standing:
    """A standing by one of the scores of what was scored."""
    blocks = tuple(map(float, scored.get("blocks") or ()))
    protocol = scored.get("protocol") or {}
    return Standing(name, score.name, float(score.value), protocol, score.error, blocks)


def version_standing(
    version: str | int, tags: Mapping[str, str], like: Mapping[str, Any] | None = None
) -> Standing:
    """The deciding score that a version with these tags was registered with; not a number if it has
    none. If that is not comparable with scores under the protocol `like`, but the version was
    scored anew under such a protocol, the new score counts."""
    name, protocol = f"version {version}", json.loads(tags.get("protocol", "{}"))
    metric = tags.get("metric", "none")
    own = scores_of(json.loads(tags.get("scores", "{}")), protocol).get(metric)
    registered = Standing(
        name=name,
        metric=metric,
        value=float(tags.get("score", "nan")),
        protocol=protocol,
        error=own.error if own is not None else None,
        blocks=tuple(json.loads(tags.get(BLOCKS_TAG, "[]"))),
        continued=START_TAG in tags,
    )
    if like is None or comparable(registered.protocol, like) is None or RESCORED_TAG not in tags:
        return registered
    later = json.loads(tags[RESCORED_TAG])
    score = headline(scores_of(later["scores"], later["protocol"]))
    if score is None or comparable(later["protocol"], like) is not None:
        return registered
    return _standing(name, score, later)
