"""The page of a run, `RUN/page.html`: what it has, its scores, curves and samples, in one file.

The trainer writes it at each checkpoint, and `gan-train page RUN` at any time. It stands alone:
style, charts and pictures are inside it, and there is no script. While the run goes on, a browser
loads it again every half minute. Jinja escapes all text.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Template
from PIL import Image

from gan_train.diagnosis.charts import Chart, Line, chart
from gan_train.diagnosis.record import SIGMA, Record, record_of
from gan_train.diagnosis.signs import KINDS, diagnose
from gan_train.files.atomic import write_aside
from gan_train.runs.events import Event, read_events
from gan_train.text import html_templates, line

NAME = "page.html"
"""The file in the run's folder."""
_GRID, _EARLIER = 900, 260  # the largest widths of the newest grid and of earlier ones, in pixels
_PICTURES = 5  # so many grids are shown
_ROWS = 12  # so many checkpoints are listed
_CURVES = {
    "Losses": ("loss/",),
    "Logits of D": ("logit/real", "logit/fake"),
    "Gradient norms": ("gradient_norm/",),
    "Strength of augmentation": ("augment_p",),
    "Images per second": ("images_per_second",),
}
"""The charts of curves: the title, and how the names of its curves begin."""
_DIVERSITY = ("pair_distance", "pair_distance_within_class", "class_entropy", "class_accuracy")


def write(run_dir: Path, patience_kimg: float | None = None) -> Path:
    """Write the page of a run from its event log and samples; returns its path. It is replaced as
    a whole. Raises `DiskFull` where there is no room."""
    path = run_dir / NAME
    text = html(run_dir, read_events(run_dir), patience_kimg)
    write_aside(path, text.encode(errors="backslashreplace"))  # names may hold half a character
    return path


def html(run_dir: Path, events: Sequence[Event], patience_kimg: float | None = None) -> str:
    """The page of a run with these present events."""
    record = record_of(events, most=None)
    start = next((e for e in events if e["kind"] == "start"), {})
    last: Event = events[-1] if events else {"kind": "", "nimg": 0, "time_ms": 0}
    found = diagnose(events, patience_kimg)
    told = [e for e in events if e["kind"] in ("diagnosis", "rolled_back", "passed_over")]
    moments = sorted({one.since / 1000 for one in found if not one.kind.advice})
    over = last["kind"] in ("end", "diverged")
    return _template().render(
        name=line(run_dir.name),
        state=_state(last),
        live=not over,
        nimg=last["nimg"],
        written=f"{datetime.fromtimestamp(last['time_ms'] / 1000):%Y-%m-%d %H:%M:%S}",
        about=_about(record, start),
        found=found,
        advice=[one for one in found if one.kind.advice],
        history=[sentence for event in told for sentence in _sentences(event)],
        scores=_score_charts(record, moments),
        curves=_curves(record, moments),
        table=_table(record),
        pictures=_pictures(run_dir, events),
    )


@cache
def _template() -> Template:
    environment = html_templates(Path(__file__).parent)
    environment.filters["kimg"] = lambda nimg: f"{nimg / 1000:.4g}"
    return environment.get_template("page.html.j2")


def _state(last: Event) -> str:
    if last["kind"] == "end":
        return str(last["status"])
    return "diverged" if last["kind"] == "diverged" else "training"


def _about(record: Record, start: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Facts of the run, each with its name."""
    facts = [("Device", start.get("device")), ("Precision", start.get("precision"))]
    if record.images:
        classes = f" in {record.classes} classes" if record.classes else ""
        data = f"{record.images:,}{classes}, {start.get('resolution', '?')} px"
        facts.append(("Images", data))
    speed = record.ticks[-1].values.get("images_per_second") if record.ticks else None
    facts.append(("Speed", f"{speed:.0f} images/s" if speed else None))
    if scored := [visit for visit in record.visits if visit.decides is not None]:
        best = min(scored, key=lambda visit: visit.cost)
        assert best.decides is not None
        said = f"{best.decides.text} at {best.nimg / 1000:.4g} kimg"
        facts.append((f"Best {best.decides.measure.label}", said))
    return [(name, line(str(value))) for name, value in facts if value]


def _sentences(event: Event) -> list[tuple[int, str]]:
    """What an event tells of the run's health, each with its number of images."""
    nimg = event["nimg"]
    if event["kind"] == "rolled_back":
        return [(nimg, f"Rolled back to here, time {event['number']}: {line(event['why'])}")]
    if event["kind"] == "passed_over":
        return [(nimg, f"Resumed; damaged checkpoints: {line(', '.join(event['checkpoints']))}")]
    if not event["found"]:
        return [(nimg, "Healthy again.")]
    return [
        (nimg, f"{one['name']} since {one['since'] / 1000:.4g} kimg: {line(one['evidence'])}")
        for one in event["found"]
        if one["name"] in KINDS
    ]


# ---- charts ------------------------------------------------------------------------------------


def _score_charts(record: Record, moments: Sequence[float]) -> list[Chart]:
    scored = [visit for visit in record.visits if visit.decides is not None]
    drawn = []
    if scored:
        newest = scored[-1].decides
        assert newest is not None
        points = [(v.nimg / 1000, v.decides.value) for v in scored if v.decides is not None]
        bands = [SIGMA * visit.se for visit in scored]
        levels = [(newest.reference_word, newest.reference)] if newest.reference else []
        title = f"{line(newest.measure.label)}, {newest.better} is better"
        drawn.append(chart(title, [Line(line(newest.name), points, bands)], levels, moments))
    shares = []
    for name in _DIVERSITY:
        points = []
        for visit in record.visits:
            score = visit.scores.get(name)
            real = score.references.get("real") if score else None
            if score and real:
                points.append((visit.nimg / 1000, score.value / real))
        shares.append(Line(name.replace("_", " "), points))
    drawn.append(chart("Variety, as a share of real images'", shares, [("real", 1.0)], moments))
    return [one for one in drawn if one is not None]


def _curves(record: Record, moments: Sequence[float]) -> list[Chart]:
    names = {name for tick in record.ticks for name in tick.values}
    found = []
    for title, starts in _CURVES.items():
        lines = [
            Line(
                line(name.partition("/")[2] or name),
                [(t.nimg / 1000, t.values[name]) for t in record.ticks if name in t.values],
            )
            for name in sorted(names)
            if name.startswith(starts)
        ]
        found.append(chart(title, lines, (), moments))
    return [one for one in found if one is not None]


def _table(record: Record) -> tuple[list[str], list[list[str]]]:
    """The heads and rows of the newest checkpoints' scores, the newest first."""
    names = list(record.visits[-1].scores) if record.visits else []
    rows = [
        [
            f"{visit.nimg / 1000:.4g}",
            *(visit.scores[n].text if n in visit.scores else "–" for n in names),
        ]
        for visit in reversed(record.visits[-_ROWS:])
    ]
    heads = [line(record.visits[-1].scores[n].measure.label) for n in names]
    return ["kimg", *heads], rows


# ---- pictures ----------------------------------------------------------------------------------


def _pictures(run_dir: Path, events: Sequence[Event]) -> list[dict[str, Any]]:
    """Grids of samples, the newest first, and earlier ones at even distances."""
    paths = {e["nimg"]: run_dir / e["path"] for e in events if e["kind"] == "image"}
    there = [(nimg, path) for nimg, path in sorted(paths.items()) if path.is_file()]
    if not there:
        return []
    last, count = len(there) - 1, min(_PICTURES, len(there))
    chosen = sorted({round(last * i / max(count - 1, 1)) for i in range(count)} | {last})
    shown = []
    for place in reversed(chosen):
        nimg, path = there[place]
        data, size = _small(path, _GRID if place == last else _EARLIER)
        shown.append({"nimg": nimg, "data": data, "width": size[0], "height": size[1]})
    return shown


def _small(path: Path, width: int) -> tuple[str, tuple[int, int]]:
    """A picture as WebP in base64, no wider than `width` pixels."""
    with Image.open(path) as picture:
        picture.thumbnail((width, 4 * width))
        buffer = io.BytesIO()
        picture.convert("RGB").save(buffer, format="WEBP", quality=90)
        return base64.b64encode(buffer.getvalue()).decode(), picture.size
