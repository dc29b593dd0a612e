"""Gives versions their aliases, as `promotion.py` decides, and writes down who was champion.

Each choice is made in a turn (`turns.py`): nobody else chooses between the look at the champion and
the alias. It is written in four steps, each of which may be repeated: the alias, its reason, the
model's description, the list of reigns. The list is written last, so a champion that it does not
end with is one whose promotion was killed, or that was set by other means than this project.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from gan_train.errors import UserError
from pipelines.registry import reigns
from pipelines.registry.evidence import Deviation, given
from pipelines.registry.promotion import (
    CHALLENGER,
    CHAMPION,
    Decision,
    Standing,
    Version,
    decide,
    deviation_between_seeds,
    refusal,
    scores_of_equals,
    version_standing,
)
from pipelines.registry.tracking import failures, is_missing
from pipelines.registry.turns import turn

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion, RegisteredModel

_SET_OTHERWISE = "set in MLflow, not by its score"


@dataclass(frozen=True)
class Given:
    """The alias that a version has now, why, and whether it became champion just now."""

    alias: str
    reason: str
    appointed: bool


def appoint(client: MlflowClient, version: ModelVersion, seeds: float | None = None) -> Given:
    """Make the version champion or challenger, by comparison with the present champion. `seeds` is
    the deviation of scores between seeds, if it is given."""

    def choose(new: ModelVersion, now: ModelVersion | None) -> Decision:
        return _by_score(client, new, now, seeds)

    return _chosen(client, version, choose)


def appoint_by_hand(client: MlflowClient, version: ModelVersion, force: bool) -> Given:
    """Make the version champion because a person says so. Raises UserError, unless forced, when its
    score and that of the present champion were not measured alike."""

    def choose(new: ModelVersion, now: ModelVersion | None) -> Decision:
        why = refusal(version_standing(new.version, new.tags), _compared(now, new))
        if why and not force:
            raise UserError(f"version {new.version} is not made champion: {why}; --force overrides")
        reason = "promoted by hand" + (f" over version {now.version}" if now else "")
        return Decision(CHAMPION, reason + (f", {why}" if why else ""))

    return _chosen(client, version, choose)


def _by_score(
    client: MlflowClient, new: ModelVersion, now: ModelVersion | None, seeds: float | None
) -> Decision:
    standing, champion = version_standing(new.version, new.tags), _compared(now, new)
    versions = _oldest_first(client, new.name)
    known = _between_seeds(versions, standing, seeds)
    equals = [] if now is None else scores_of_equals(versions, now.tags, new.tags, standing)
    return decide(standing, champion, known, equals)


def between_seeds(
    client: MlflowClient, name: str, like: Standing, told: float | None = None
) -> Deviation | None:
    """The deviation of scores between seeds: what a person has told, or else from the versions of a
    model that were scored alike; None where they tell too little."""
    return _between_seeds(_oldest_first(client, name), like, told)


def _between_seeds(versions: list[Version], like: Standing, told: float | None) -> Deviation | None:
    return deviation_between_seeds(versions, like) if told is None else given(told)


def _oldest_first(client: MlflowClient, name: str) -> list[Version]:
    found = client.search_model_versions(f"name = '{name}'", max_results=1000)
    oldest_first = sorted(found, key=lambda version: int(version.version))
    return [(version.run_id or "", version.tags) for version in oldest_first]


def _compared(now: ModelVersion | None, new: ModelVersion) -> Standing | None:
    """The champion's score with which a new version is compared; None if there is no champion."""
    if now is None:
        return None
    like = version_standing(new.version, new.tags).protocol
    return version_standing(now.version, now.tags, like)


Choose = Callable[["ModelVersion", "ModelVersion | None"], Decision]
Kept = Callable[[], bool]


def _chosen(client: MlflowClient, version: ModelVersion, choose: Choose) -> Given:
    """Choose in a turn; once more, if the turn was given to another meanwhile."""
    appointed = late = False
    while True:
        with turn(client, version.name) as kept:
            given = _choose(client, version.name, str(version.version), choose, kept, late)
            appointed = given.alias == CHAMPION and (appointed or given.appointed)
            if kept():
                return replace(given, appointed=appointed)
            late = True


def _choose(
    client: MlflowClient, name: str, number: str, choose: Choose, kept: Kept, late: bool
) -> Given:
    """Choose between a version and the champion, and write it down. `late`: this was done before,
    but outside of the turn, so it may have replaced a champion that was chosen meanwhile."""
    model, new = client.get_registered_model(name), client.get_model_version(name, number)
    known = reigns.of(model)
    last = _version(client, name, known[-1].version) if known else None
    champion = model.aliases.get(CHAMPION)
    now = None if champion is None else client.get_model_version(name, str(champion))
    written = now is not None and known and known[-1].version == int(now.version)
    if now is not None and int(now.version) == int(new.version):
        if written:
            return _repeated(client, new, known[-1].reason)
        if not late:
            decision = Decision(CHAMPION, _why(new, choose(new, last), bool(known)))
            return _give(client, model, new, decision, known, kept)
        now = last
    elif now is not None and not written:
        known = [*known, _found(client, now, last, bool(known))]
    decision = choose(new, now)
    if late and decision.alias == CHALLENGER and now is not None:
        client.set_registered_model_alias(name, CHAMPION, str(now.version))
    return _give(client, model, new, decision, known, kept)


def _found(
    client: MlflowClient, now: ModelVersion, last: ModelVersion | None, any_known: bool
) -> reigns.Reign:
    """The reign of a champion that the list does not end with."""
    at = datetime.fromtimestamp((now.last_updated_timestamp or 0) / 1000, UTC)
    return reigns.begun(
        int(now.version), _why(now, _by_score(client, now, last, None), any_known), at
    )


def _why(now: ModelVersion, decision: Decision, any_known: bool) -> str:
    """Why a version is champion that the list does not end with, by what is known of it."""
    if not any_known and "reason" in now.tags:  # earlier versions of this project kept no list
        return now.tags["reason"]
    return decision.reason if decision.alias == CHAMPION else _SET_OTHERWISE


def _repeated(client: MlflowClient, new: ModelVersion, reason: str) -> Given:
    """What a champion gets when it is chosen again: nothing, but what may be lacking."""
    if "reason" not in new.tags:
        client.set_model_version_tag(new.name, str(new.version), "reason", reason)
    return Given(CHAMPION, new.tags.get("reason", reason), appointed=False)


def _give(
    client: MlflowClient,
    model: RegisteredModel,
    new: ModelVersion,
    decision: Decision,
    known: list[reigns.Reign],
    kept: Kept,
) -> Given:
    """Give the version its alias, and write down why; each step may be repeated."""
    name, number = model.name, str(new.version)
    client.set_registered_model_alias(name, decision.alias, number)
    if decision.alias == CHAMPION and str(model.aliases.get(CHALLENGER)) == number:
        client.delete_registered_model_alias(name, CHALLENGER)
    client.set_model_version_tag(name, number, "reason", decision.reason)
    appointed = decision.alias == CHAMPION
    if appointed:
        known = [*known, reigns.begun(int(number), decision.reason)]
    if known != reigns.of(model) and kept():  # else the list is another's by now
        reigns.record(client, model, known)
    return Given(decision.alias, decision.reason, appointed)


def _version(client: MlflowClient, name: str, number: int) -> ModelVersion | None:
    """The version; None if it was deleted."""
    try:
        return client.get_model_version(name, str(number))
    except failures() as error:
        if not is_missing(error):
            raise
        return None
