"""How MLflow's UI shows the runs of an experiment: a table that tells which is best and what it
cost. Pure functions.

The UI of MLflow 3.17 opens an experiment on traces of language models, unless the browser has been
switched to "Model training", or the address says so. It keeps the columns that a person chose in
the browser. But a view that is shared is a tag of the experiment, which an address names: so this
project shares one.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from gan_train.metrics.scores import scores_of
from pipelines.registry.promotion import best_checkpoint, event_standing

SCORE, ERROR = "best/score", "best/error"
REFERENCE, KIMG = "best/reference", "best/kimg"
"""The metrics of a run that tell of its best checkpoint so far: the deciding score, its standard
error, what real images get (or a method without a network), and how many thousand images it has
seen. They have four digits, and the error two, because the table shows all there are; under its own
name the score has all digits."""
MEASURE_TAG = "measure"
"""The tag of a run that names its deciding score."""
KIND = {"mlflow.experimentKind": "custom_model_development"}
"""The tag of an experiment of model training, by which the UI that is not switched goes."""

_VIEW = "gan-train"
_WIDTHS = {
    f"metrics.`{SCORE}`": 90,
    f"metrics.`{ERROR}`": 90,
    f"metrics.`{REFERENCE}`": 120,
    "duration": 80,  # which is always shown
    f"metrics.`{KIMG}`": 90,
    "params.`cluster.workers`": 120,
    "tags.`precision`": 90,
    "tags.`device`": 150,
    f"tags.`{MEASURE_TAG}`": 170,
}
"""The columns of the view in their order, each with its width in pixels."""
VIEW = {
    f"mlflow.sharedViewState.{_VIEW}": json.dumps(
        {
            "selectedColumns": [column for column in _WIDTHS if "." in column],
            "columnOrder": list(_WIDTHS),
            "columnWidths": _WIDTHS,
            "orderByKey": f"metrics.`{SCORE}`",
            "orderByAsc": True,  # every score that decides is better when it is lower
        }
    )
}
"""The tag of an experiment that holds the view."""

TRAINING = "workflowType=machine_learning"
"""The part of an address that switches the UI to "Model training"."""


def page(experiment_id: str) -> str:
    """The place of the table in the UI."""
    return f"#/experiments/{experiment_id}/runs?{TRAINING}&viewStateShareKey={_VIEW}"


def best_until(
    events: Iterable[Mapping[str, Any]], nimg: int
) -> tuple[dict[str, float], str | None]:
    """The metrics of the best checkpoint until `nimg` images, and the name of its deciding score;
    empty and None if no checkpoint was scored by a number."""
    best = best_checkpoint(event for event in events if event["nimg"] <= nimg)
    standing = event_standing(best) if best is not None else None
    if best is None or standing is None:
        return {}, None
    reference = scores_of(best["scores"], best["protocol"])[standing.metric].reference
    told = {SCORE: standing.value, KIMG: best["nimg"] / 1000, REFERENCE: reference}
    shown = {k: float(f"{v:.4g}") for k, v in told.items() if v is not None}
    if standing.error is not None:
        shown[ERROR] = float(f"{standing.error:.2g}")
    return shown, standing.metric
