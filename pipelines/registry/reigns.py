"""Who was champion from when to when, and why: JSON lines in a tag of the registered model, which
its description shows at its end. The oldest lines go when there is no more room."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import RegisteredModel

TAG = "gan_train.champions"
HEADING = "### Champions"
_LIMIT = 4900  # characters; MLflow's database holds 5,000 of a tag and of a description
_REASON = 200  # characters
_SHOWN = 10


@dataclass(frozen=True)
class Reign:
    """A version was champion from `since` until the next one was."""

    version: int
    since: str
    """ISO 8601, in UTC."""
    reason: str


def begun(version: int, reason: str, at: datetime | None = None) -> Reign:
    """A reign that begins `at` a time, or now."""
    when = (at or datetime.now(UTC)).astimezone(UTC)
    return Reign(version, when.isoformat(timespec="seconds"), reason)


def of(model: RegisteredModel) -> list[Reign]:
    """The reigns that a registered model remembers, the oldest first."""
    return [Reign(**json.loads(line)) for line in model.tags.get(TAG, "").splitlines()]


def record(client: MlflowClient, model: RegisteredModel, reigns: Sequence[Reign]) -> None:
    """Keep these reigns, the newest of which may just have begun. The tag is written last: it says
    that all else is done."""
    text = (model.description or "").partition(HEADING)[0].rstrip()
    table = _table(reigns)
    if len(text) + len(table) < _LIMIT:
        client.update_registered_model(model.name, f"{text}\n\n{table}")
    kept: list[str] = []
    for reign in reversed(reigns):
        line = json.dumps(asdict(reign) | {"reason": reign.reason[:_REASON]})
        if sum(map(len, kept)) + len(kept) + len(line) > _LIMIT:
            break
        kept.append(line)
    client.set_registered_model_tag(model.name, TAG, "\n".join(reversed(kept)))


def spans(reigns: Sequence[Reign]) -> list[tuple[Reign, str]]:
    """Each reign and when it ended, the newest first; empty for the one that lasts."""
    ends = [reign.since for reign in reigns[1:]] + [""]
    return list(zip(reigns, ends, strict=True))[::-1]


def _table(reigns: Sequence[Reign]) -> str:
    rows = [
        f"| {reign.version} | {_minute(reign.since)} | {_minute(end)} | {reign.reason[:_REASON]} |"
        for reign, end in spans(reigns)[:_SHOWN]
    ]
    head = ["| version | from (UTC) | to | why |", "|---|---|---|---|"]
    return "\n".join([HEADING, "", *head, *rows])


def _minute(when: str) -> str:
    return when[:16].replace("T", " ") or "now"
