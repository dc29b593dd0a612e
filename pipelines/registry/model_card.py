"""Writes the description of a registered version: a model card in Markdown. It only makes text.

MLflow's UI shows headings, lists, tables, code, and images that lie on its own server; it drops
images inside the text (`data:`). Its database holds 5,000 characters of a description.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from gan_train.config import Config
from gan_train.data.index import Index
from gan_train.metrics.scores import number, scores_of
from gan_train.text import code, markdown
from pipelines.registry.evidence import Deviation

LIMIT = 5000
_CLASSES_SHOWN = 40
_ROWS = 16
_GAP = "&nbsp;&nbsp;"  # the UI's tables have no space between their columns


@dataclass(frozen=True)
class CardFacts:
    """The facts of a card that are in neither the configuration nor the index of the data."""

    model: str
    nimg: int
    scores: Mapping[str, Any]
    protocol: Mapping[str, Any]
    metric: str
    chosen: str | None
    """The score by which it was chosen among its run's checkpoints, where that is not the score."""
    deviation: Deviation | None
    """That of scores between seeds, where the versions before tell it."""
    task: str
    z_dim: int
    conditional: bool
    precision: str
    run_id: str
    picture: str | None  # path among the run's artifacts
    commit: str | None  # of the code that trained
    library: str | None  # the version of gan-train
    config_hash: str
    lineage: Sequence[str]  # lines of Markdown


def model_card(config: Config, index: Index, facts: CardFacts) -> str:
    """The card, at most `LIMIT` characters: addresses that are too long are left out."""
    parts = [
        _what(config, index, facts),
        _picture(facts),
        _scores(facts),
        _data(config, index),
        _training(config, facts),
        _use(config, index, facts),
        _lineage(facts),
    ]
    text = "\n\n".join(filter(None, parts))
    if len(text) > LIMIT:
        text = "\n\n".join(filter(None, parts[:-1]))
    assert len(text) <= LIMIT, f"a model card of {len(text)} characters"
    return text


def _colour(channels: int) -> str:
    return "grey" if channels == 1 else "RGB"


def _classes(index: Index) -> str:
    names = ", ".join(index.classes[:_CLASSES_SHOWN])
    more = len(index.classes) - _CLASSES_SHOWN
    return markdown(names, 300) + (f" and {more} more" if more > 0 else "")


def _what(config: Config, index: Index, facts: CardFacts) -> str:
    side = index.resolution
    asked = f", of {len(index.classes)} classes on request" if facts.conditional else ""
    if facts.task != "generate":
        return (
            f"This **{config.family.name}** generator {_DOES[facts.task]}, in "
            f"{_colour(index.channels)}. It was trained from scratch on "
            f"*{markdown(_source(config), 80)}* at {side}x{side} pixels."
        )
    return (
        f"This **{config.family.name}** generator turns latents into {_colour(index.channels)} "
        f"images of {side}x{side} pixels{asked}. It was trained from scratch on "
        f"*{markdown(_source(config), 80)}*; its images are synthetic."
    )


def _source(config: Config) -> str:
    """The name of the source; of two sources both names, domain A's first."""
    first = _ending(config.data.source, config.data.only_classes)
    second = config.data.second
    if second is None:
        return first
    other = _ending(second.source or config.data.source, second.only_classes)
    return f"{first} (A) and {other} (B)"


def _ending(path: str, classes: Sequence[str]) -> str:
    name = path.rstrip("/").rsplit("/", 1)[-1]
    return f"{name} {', '.join(classes)}" if classes and len(classes) < 4 else name


def _picture(facts: CardFacts) -> str:
    if facts.picture is None:
        return ""
    where = urlencode({"path": facts.picture, "run_uuid": facts.run_id})
    return f"![samples at {facts.nimg:,} images](get-artifact?{where})"


def _shown(value: float | None) -> str:
    return "–" if value is None or math.isnan(value) else number(value)


def score_rows(scores: Mapping[str, float], metric: str) -> list[tuple[str, str, str]]:
    """Rows that hold a measure's name, the version's value, and that of its reference. The measure
    that decides comes first."""
    found = sorted(scores_of(scores, {}).values(), key=lambda score: score.name != metric)
    return [
        (markdown(score.name, 80), score.text, _shown(score.reference)) for score in found[:_ROWS]
    ]


_REFERENCES = {
    "generate": "real images (null)",
    "upscale": "bicubic",
    "translate": "untranslated, or null",
}


def _scores(facts: CardFacts) -> str:
    rows = [
        f"| {name} {_GAP} | {value} {_GAP} | {real} |"
        for name, value, real in score_rows(facts.scores, facts.metric)
    ]
    how = "; ".join(
        f"{key} {markdown(str(value), 48 if key == 'reference' else 24)}"
        for key, value in facts.protocol.items()
        if key != "null_images"
    )
    halves = facts.protocol.get("null_images")
    size = f", {halves} on each side" if halves else ""
    null = (
        "The column of real images holds null values: what one half of them gets against "
        f"another{size}. A perfect generator gets the same. "
        if facts.task == "generate"
        else ""
    )
    return "\n".join(
        [
            "### Scores",
            "",
            f"| measure {_GAP} | this version {_GAP} | {_REFERENCES[facts.task]} |",
            "|---|---|---|",
            *rows,
            "",
            f"`{facts.metric}` decides, and lower is better. ± is one standard error over samples. "
            f"{_trainings(facts)}"
            f"{null}How it was measured: {how}.",
        ]
    )


def _trainings(facts: CardFacts) -> str:
    """Sentences on what chance and choice have done to the score."""
    said = ""
    if facts.deviation is not None:
        value, origin = number(facts.deviation.value), facts.deviation.origin
        said += f"Trainings that differ in their seed alone deviate by {value} ({origin}). "
    if facts.chosen is not None:
        said += f"The checkpoint was chosen by {facts.chosen}, on other latents. "
    return said


def _data(config: Config, index: Index) -> str:
    labels = f"\n- {len(index.classes)} classes: {_classes(index)}" if index.classes else ""
    return (
        f"### Data\n\n- {index.samples:,} images, {_colour(index.channels)}, "
        f"{index.resolution}x{index.resolution}, content hash `{index.content_hash[:16]}`{labels}\n"
        f"- licence: {markdown(config.data.licence or 'not recorded', 200)}"
    )


def _training(config: Config, facts: CardFacts) -> str:
    code = f", gan-train {facts.library}" if facts.library else ""
    code += f", commit `{facts.commit[:12]}`" if facts.commit else ""
    return (
        f"### Training\n\n- {facts.nimg:,} real images seen, seed {config.seed}, precision "
        f"{facts.precision}\n- recipe `{config.name}`, configuration "
        f"`{facts.config_hash[:16]}`{code}"
    )


def _lineage(facts: CardFacts) -> str:
    return "\n".join(["### Lineage", "", *(f"- {line}" for line in facts.lineage)])


_DOES = {
    "upscale": "upscales pictures of any size",
    "translate": "translates pictures from one domain to the other, both ways",
}


def _use_of_pictures(config: Config, facts: CardFacts, alias: str) -> str:
    to = ', "to": "B"' if facts.task == "translate" else ""
    return (
        f"### Use\n\n```\ngan-train {facts.task} picture.jpg"
        f"{' --to B' if to else ''} --model {config.name}\n```\n\n"
        f"`gan-train serve models:/{facts.model}@{alias}` does it in the browser. "
        f"Served by `mlflow models serve --env-manager local -m models:/{facts.model}@{alias}`, it "
        f'answers `{{"inputs": [{{"image": "<a picture file in base64>"{to}}}]}}` with PNG files '
        "in base64. Weights are safetensors; nothing is pickled."
    )


def _use(config: Config, index: Index, facts: CardFacts) -> str:
    label = {"label": index.classes[0][:40]} if facts.conditional else {}
    request = json.dumps({"seed": 1} | label)
    body = code(f'{{"inputs": [{request}]}}')
    alias = "champion"
    if facts.task != "generate":
        return _use_of_pictures(config, facts, alias)
    return (
        f"### Use\n\n```\nimport mlflow.pyfunc\n"
        f'model = mlflow.pyfunc.load_model("models:/{facts.model}@{alias}")\n'
        f"images = model.predict([{request}])  # uint8 [N, H, W, C]\n```\n\n"
        f"`gan-train serve models:/{facts.model}@{alias}` shows a gallery in the browser. "
        f"Served by `mlflow models serve --env-manager local -m models:/{facts.model}@{alias}`, "
        f"it answers {body}. Instead of `seed`, `z` gives the latents: "
        f"{facts.z_dim} numbers from N(0, 1). `truncation` below 1 trades variety for "
        f"typicality, where the family has it. Weights are safetensors; nothing is pickled."
    )
