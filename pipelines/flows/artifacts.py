"""Shows a flow run in Prefect's UI: progress, the table of scores, sample grids, links.
The UI renders Markdown, also in descriptions and tables: names are escaped on their way there.

A server that does not answer for a moment must not end a training of many hours. An artifact that
cannot be shown is logged and left out, so nothing here raises for an absent server.
"""

from __future__ import annotations

import base64
import io
import logging
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
from PIL import Image
from prefect.artifacts import (
    MarkdownArtifact,
    create_image_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterId,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.events import emit_event
from prefect.exceptions import PrefectException
from prefect.runtime import flow_run

from gan_train.diagnosis.signs import KINDS
from gan_train.metrics.scores import number, scores_of, split
from gan_train.text import markdown

log = logging.getLogger(__name__)

_PLACE = ("kimg", "resolution", "alpha")  # columns that are no scores
_GRID_WIDTH = 1024  # the largest width of a grid in the UI, in pixels
AWAY = (httpx.HTTPError, PrefectException)
"""The exceptions that are raised when the server does not answer or fails."""


def _shown(what: str, show: Callable[[], Any]) -> Any:
    """The result of `show`; None, with a warning that names `what`, when the server is away."""
    try:
        return show()
    except AWAY as error:
        log.warning("%s is not shown in Prefect: %s", what, error)
        return None


class Progress:
    """A progress bar in the UI. Call it with a fraction in [0, 1] to move it."""

    def __init__(self, key: str, description: str) -> None:
        self._id: UUID | None = _shown(
            "progress",
            lambda: create_progress_artifact(
                progress=0.0, key=key, description=markdown(description)
            ),
        )

    def __call__(self, fraction: float) -> None:
        """Move the bar to a fraction in [0, 1]."""
        artifact = self._id
        if artifact is not None:
            percent = round(100 * min(1.0, fraction), 1)
            _shown("progress", lambda: update_progress_artifact(artifact, progress=percent))


def score_table(rows: list[dict[str, Any]], description: str) -> None:
    """Show the scores of a run's checkpoints, a row each, with their references."""
    table = [{markdown(name): cell for name, cell in _cells(row).items()} for row in rows]
    _shown(
        "the score table",
        lambda: create_table_artifact(table=table, key="scores", description=markdown(description)),
    )


def _cells(row: dict[str, Any]) -> dict[str, Any]:
    """A row as it is shown: each score with its error."""
    numbers = {name: value for name, value in row.items() if isinstance(value, int | float)}
    scores = scores_of(numbers, {})
    cells = {}
    for name, value in row.items():
        if name in scores and name not in _PLACE:
            cells[name] = scores[name].text
        elif split(name)[1] != "se" or split(name)[0] not in scores:
            cells[name] = _cell(name, value)
    return cells


def _cell(name: str, value: Any) -> Any:
    """A reference in three digits; where a row stands in the training, to five."""
    if not isinstance(value, float):
        return markdown(value) if isinstance(value, str) else value
    return float(f"{value:.5g}") if name in _PLACE else number(value)


def sample_grid(path: Path, description: str) -> None:
    """Show a grid of samples. The artifact carries the image itself, because the UI cannot read a
    worker's disk."""
    with Image.open(path) as grid:
        grid.thumbnail((_GRID_WIDTH, 4 * _GRID_WIDTH))
        buffer = io.BytesIO()
        grid.save(buffer, format="PNG", optimize=True)
    url = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    image("samples", url, description)


def image(key: str, url: str, description: str) -> None:
    """Show an image by its URL, which may hold the image itself (`data:`)."""
    about = markdown(description)
    _shown(key, lambda: create_image_artifact(image_url=url, key=key, description=about))


def note(key: str, text: str) -> None:
    """Show some lines of Markdown, such as where things are and links to them. Whoever makes them
    escapes what may hold any text (`gan_train.text`)."""
    _shown(key, lambda: create_markdown_artifact(markdown=text, key=key))


def diagnosis(run: str, event: Mapping[str, Any]) -> None:
    """Show what a run has by an event `diagnosis` of its log, and what usually helps."""
    told = [
        f"- **{markdown(one['name'])}** since {one['since'] / 1000:.4g} kimg: "
        f"{markdown(one['evidence'])}. What usually helps: {markdown(KINDS[one['name']].remedy)}."
        for one in event["found"]
    ]
    at = f"{markdown(run)} at {event['nimg'] / 1000:.4g} kimg"
    note("diagnosis", f"{at}:\n\n" + "\n".join(told) if told else f"{at}: no sign of disease.")


def note_above(key: str, text: str) -> None:
    """Show some lines of Markdown on this flow run's page, and on that of the run that it is part
    of. Call it in a flow, not in a task."""
    for one in _with_root():
        shown = MarkdownArtifact(markdown=text, key=key, flow_run_id=one)
        _shown(key, partial(shown.create, _sync=True))  # type: ignore[call-arg]


def event(name: str, about: str, **facts: Any) -> None:
    """Send an event to the server, which may start an automation (infra/prefect): what happened to
    which thing, such as `gan-train.champion` to the model `progan-demo`, and facts about it."""
    resource = {"prefect.resource.id": about, "prefect.resource.name": about.rpartition("/")[2]}
    _shown(name, lambda: emit_event(name, resource, payload=facts))


def alarm(run: str, message: str) -> None:
    """Tell the server that something about a run needs a look, though it goes on."""
    event("gan-train.alarm", f"gan-train.run/{run}", message=message)


def cancelled() -> bool:
    """Whether someone asked to cancel this flow run, or one that it is part of."""
    return cancellation() is not None


def cancellation() -> str | None:
    """The words with which someone asked to cancel this flow run, or one that it is part of: empty
    if there were none. None if nobody asked."""
    cancelled = FlowRunFilter(
        id=FlowRunFilterId(any_=_with_root()),
        state=FlowRunFilterState(
            type=FlowRunFilterStateType(any_=[StateType.CANCELLING, StateType.CANCELLED])
        ),
    )

    def ask() -> list[FlowRun]:
        with get_client(sync_client=True) as client:
            return client.read_flow_runs(flow_run_filter=cancelled, limit=1)

    for run in _shown("cancellation", ask) or []:
        return (run.state.message if run.state else None) or ""
    return None


def _with_root() -> list[UUID]:
    """The ids of this flow run and of the outermost one that it is part of, each once."""
    ids = (flow_run.get_id(), flow_run.get_root_flow_run_id())
    return [UUID(one) for one in dict.fromkeys(ids) if one]
