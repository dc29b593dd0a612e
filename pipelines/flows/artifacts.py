"""What a flow run shows in Prefect's UI: progress, score table, sample grid, links.

A server that is away for a moment must not end a training of many hours: what cannot be shown is
logged and left out.
"""

from __future__ import annotations

import base64
import io
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
from PIL import Image
from prefect.artifacts import (
    create_image_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.client.orchestration import get_client
from prefect.exceptions import PrefectException
from prefect.runtime import flow_run

log = logging.getLogger(__name__)

_GRID_WIDTH = 1024  # pixels of a grid in the UI
AWAY = (httpx.HTTPError, PrefectException)
"""What a server that is away, or fails, raises."""


def _shown(what: str, show: Callable[[], Any]) -> Any:
    try:
        return show()
    except AWAY as error:
        log.warning("%s is not shown in Prefect: %s", what, error)
        return None


class Progress:
    """A progress bar in the UI, from 0 to 100 %."""

    def __init__(self, key: str, description: str) -> None:
        self._id: UUID | None = _shown(
            "progress",
            lambda: create_progress_artifact(progress=0.0, key=key, description=description),
        )

    def __call__(self, fraction: float) -> None:
        """Move the bar to a fraction in [0, 1]."""
        artifact = self._id
        if artifact is not None:
            percent = round(100 * min(1.0, fraction), 1)
            _shown("progress", lambda: update_progress_artifact(artifact, progress=percent))


def score_table(rows: list[dict[str, Any]], description: str) -> None:
    """The scores of a run's checkpoints; null values stand beside the distances."""
    table = [{name: _rounded(value) for name, value in row.items()} for row in rows]
    _shown(
        "the score table",
        lambda: create_table_artifact(table=table, key="scores", description=description),
    )


def _rounded(value: Any) -> Any:
    return float(f"{value:.5g}") if isinstance(value, float) else value


def sample_grid(path: Path, description: str) -> None:
    """A grid of samples, carried inside the artifact: the UI cannot read a worker's disk."""
    with Image.open(path) as picture:
        picture.thumbnail((_GRID_WIDTH, 4 * _GRID_WIDTH))
        buffer = io.BytesIO()
        picture.save(buffer, format="PNG", optimize=True)
    url = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    image("samples", url, description)


def image(key: str, url: str, description: str) -> None:
    """A picture by its URL, which may hold the picture itself (`data:`)."""
    _shown(key, lambda: create_image_artifact(image_url=url, key=key, description=description))


def note(key: str, text: str) -> None:
    """Some lines of Markdown: where things are, and links to them."""
    _shown(key, lambda: create_markdown_artifact(markdown=text, key=key))


def cancelled() -> bool:
    """Whether someone asked to cancel this flow run, or one that it is part of."""
    ids = {UUID(i) for i in (flow_run.get_id(), flow_run.get_root_flow_run_id()) if i}

    def ask() -> bool:
        with get_client(sync_client=True) as client:
            states = [client.read_flow_run(i).state for i in ids]
        return any(s is not None and (s.is_cancelling() or s.is_cancelled()) for s in states)

    return bool(_shown("cancellation", ask))
