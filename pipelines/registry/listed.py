"""Lists the versions of a registered model. Only reads, and makes nothing in MLflow."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from gan_train.config import Config
from gan_train.errors import UserError
from pipelines.registry.promotion import CHALLENGER, CHAMPION
from pipelines.registry.tracking import connect, failures, tracking_uri
from pipelines.registry.versions import model_name


@dataclass(frozen=True)
class Listed:
    """A version as a table shows it."""

    number: int
    alias: str
    """`champion`, `challenger`, an alias that a person gave, or empty."""
    measure: str
    """The name of the deciding score; empty for an import, which has none."""
    score: float
    images_seen: int
    run: str
    """The name of the run that trained it."""
    registered: datetime


def place(config: Config) -> str:
    """The registered model and where it is looked for, in words."""
    return f"{model_name(config)} in MLflow at {tracking_uri(config)}"


def versions(config: Config) -> list[Listed]:
    """The versions of the recipe's registered model, the newest first; empty if there are none.

    Raises UserError when the tracking server is away.
    """
    name = model_name(config)
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
        first = str(error).splitlines()[0]
        raise UserError(f"MLflow at {tracking_uri(config)} does not answer ({first})") from error
    order: dict[str, int] = {CHAMPION: 0, CHALLENGER: 1}
    listed = [
        Listed(
            number=int(version.version),
            alias=", ".join(
                sorted(aliases.get(str(version.version), []), key=lambda a: (order.get(a, 2), a))
            ),
            measure=version.tags.get("metric", ""),
            score=float(version.tags.get("score", "nan")),
            images_seen=int(version.tags.get("images_seen", 0)),
            run=names.get(version.run_id or "", ""),
            registered=datetime.fromtimestamp(version.creation_timestamp / 1000),
        )
        for version in found
    ]
    return sorted(listed, key=lambda version: -version.number)
