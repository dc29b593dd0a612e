"""The description of a registered version: a model card in Markdown. Pure text, no MLflow.

MLflow's UI shows headings, lists, tables and code, and pictures by an address on its own server;
pictures inside the text (`data:`) are dropped. The database holds 5,000 characters.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from gan_train.config import Config
from gan_train.data.index import Index
from pipelines.promotion import OF_REAL_IMAGES

LIMIT = 5000
_CLASSES_SHOWN = 40
_ROWS = 16
_GAP = "&nbsp;&nbsp;"  # the UI's tables have no space between their columns


@dataclass(frozen=True)
class CardFacts:
    """What the card tells beyond configuration and data."""

    model: str
    nimg: int
    scores: Mapping[str, Any]
    protocol: Mapping[str, Any]
    metric: str
    z_dim: int
    conditional: bool
    run_id: str
    picture: str | None  # path among the run's artifacts
    commit: str | None
    config_hash: str


def model_card(config: Config, index: Index, facts: CardFacts) -> str:
    """The card, at most `LIMIT` characters."""
    text = "\n\n".join(
        part
        for part in (
            _what(config, index, facts),
            _picture(facts),
            _scores(facts),
            _data(config, index),
            _training(config, facts),
            _use(index, facts),
        )
        if part
    )
    assert len(text) <= LIMIT, f"a model card of {len(text)} characters"
    return text


def _colour(channels: int) -> str:
    return "grey" if channels == 1 else "RGB"


def _classes(index: Index) -> str:
    names = ", ".join(index.classes[:_CLASSES_SHOWN])
    more = len(index.classes) - _CLASSES_SHOWN
    return _cut(names, 300) + (f" and {more} more" if more > 0 else "")


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _what(config: Config, index: Index, facts: CardFacts) -> str:
    side = index.resolution
    asked = f" of {len(index.classes)} classes on request" if facts.conditional else ""
    return (
        f"A **{config.family.name}** generator: latents to {_colour(index.channels)} images of "
        f"{side}x{side} pixels{asked}. Trained from scratch on *{_cut(_source(config), 80)}*; "
        f"its images are synthetic."
    )


def _source(config: Config) -> str:
    return config.data.source.rstrip("/").rsplit("/", 1)[-1]


def _picture(facts: CardFacts) -> str:
    if facts.picture is None:
        return ""
    where = urlencode({"path": facts.picture, "run_uuid": facts.run_id})
    return f"![samples at {facts.nimg:,} images](get-artifact?{where})"


def number(value: Any) -> str:
    """Four significant digits; a dash for what is no number."""
    if not isinstance(value, int | float) or math.isnan(value):
        return "–"
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def score_rows(scores: Mapping[str, Any], metric: str) -> list[tuple[str, str, str]]:
    """Rows (measure, of this version, of real images), the one that decides first."""
    names = [name for name in scores if not name.endswith(OF_REAL_IMAGES)]
    names.sort(key=lambda name: name != metric)

    def real(name: str) -> Any:
        return next((scores[name + end] for end in OF_REAL_IMAGES if name + end in scores), None)

    return [(name, number(scores[name]), number(real(name))) for name in names[:_ROWS]]


def _scores(facts: CardFacts) -> str:
    rows = [
        f"| {name} {_GAP} | {value} {_GAP} | {real} |"
        for name, value, real in score_rows(facts.scores, facts.metric)
    ]
    how = "; ".join(
        f"{key} {_cut(str(value), 48 if key == 'reference' else 24)}"
        for key, value in facts.protocol.items()
        if key != "null_images"
    )
    halves = facts.protocol.get("null_images")
    size = f", {halves} on each side" if halves else ""
    return "\n".join(
        [
            "### Scores",
            "",
            f"| measure {_GAP} | this version {_GAP} | real images (null) |",
            "|---|---|---|",
            *rows,
            "",
            f"`{facts.metric}` decides, and lower is better. *Real images* have no distance from "
            f"themselves: theirs is the null value, one half of them against another{size}, which "
            f"is what a perfect generator gets. Measured with: {how}.",
        ]
    )


def _data(config: Config, index: Index) -> str:
    labels = f"\n- {len(index.classes)} classes: {_classes(index)}" if index.classes else ""
    return (
        f"### Data\n\n- {index.samples:,} images, {_colour(index.channels)}, "
        f"{index.resolution}x{index.resolution}, content hash `{index.content_hash[:16]}`{labels}\n"
        f"- licence: {_cut(config.data.licence or 'not recorded', 200)}"
    )


def _training(config: Config, facts: CardFacts) -> str:
    commit = f", commit `{facts.commit[:12]}`" if facts.commit else ""
    return (
        f"### Training\n\n- {facts.nimg:,} real images seen, seed {config.seed}, precision "
        f"{config.train.precision}\n- recipe `{config.name}`, configuration "
        f"`{facts.config_hash[:16]}`{commit}"
    )


def _use(index: Index, facts: CardFacts) -> str:
    label = f', "label": "{_cut(index.classes[0], 40)}"' if facts.conditional else ""
    request = f'{{"seed": 1{label}}}'
    alias = "champion"
    return (
        f"### Use\n\n```\nimport mlflow.pyfunc\n"
        f'model = mlflow.pyfunc.load_model("models:/{facts.model}@{alias}")\n'
        f"images = model.predict([{request}])  # uint8 [N, H, W, C]\n```\n\n"
        f"Served by `mlflow models serve --env-manager local -m models:/{facts.model}@{alias}`, "
        f'it answers `{{"inputs": [{request}]}}`. Instead of `seed`, `z` gives the latents: '
        f"{facts.z_dim} numbers from N(0, 1). `truncation` in (0, 1] trades variety for "
        f"typicality, where the family has it. Weights are safetensors; nothing is pickled."
    )
