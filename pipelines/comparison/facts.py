"""Holds what a comparison found, and arranges it in sections, tables and charts. Pure functions.

`Facts` hold everything that a report shows, and are stored as JSON beside it. Scores are stored
flat; `gan_train/metrics/scores.py` says what their names mean.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict

from gan_train.adversary import Task
from gan_train.metrics.protocol import Protocol
from gan_train.metrics.scores import (
    Measure,
    Score,
    error_name,
    headline,
    number,
    references,
    scores_of,
    with_error,
)
from pipelines.comparison import charts

Scores = dict[str, float]


class _Fact(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")


class Picture(_Fact):
    """A grid of samples that the page carries inside it."""

    png: str
    """The PNG file in base64."""
    width: int
    height: int
    text: str
    """What the grid shows, in words."""


class Scored(_Fact):
    """A checkpoint: how far training had come, and its scores."""

    kimg: float
    """Thousands of images seen until then."""
    minutes: float
    """Minutes of training until then; saving and scoring do not count."""
    scores: Scores


class Entry(_Fact):
    """What one recipe did with the budget."""

    recipe: str
    family: str
    task: Task
    run: str
    workers: int
    batch: int
    generator_parameters: int
    other_parameters: int
    kimg: float
    """Thousands of images seen by the newest checkpoint."""
    minutes: float
    """Minutes of training; saving and scoring do not count."""
    memory_gib: float | None
    """The most memory that one worker held, in GiB."""
    checkpoints: tuple[Scored, ...]
    """The checkpoints that were scored, oldest first."""
    lengths: Scores = {}
    """Path lengths of the last checkpoint."""
    protocol: Protocol = {}
    notes: tuple[str, ...] = ()
    picture: Picture | None = None
    settings: str = ""
    """The resolved recipe, as YAML."""
    error: str | None = None
    """Why the recipe failed; the other fields hold what it had reached until then."""

    @property
    def scores(self) -> Scores:
        """The scores of the last checkpoint, with its path lengths; empty where none was scored."""
        return (self.checkpoints[-1].scores if self.checkpoints else {}) | self.lengths

    @property
    def measured(self) -> dict[str, Score]:
        """The scores of the last checkpoint as records, each with its references."""
        return scores_of(self.scores, self.protocol)

    @property
    def images_per_second(self) -> float | None:
        """The speed over the whole training; saving and scoring do not count."""
        return 1000 * self.kimg / (60 * self.minutes) if self.minutes else None


class Facts(_Fact):
    """A whole comparison."""

    id: str
    budget: str
    data: str
    """The data set, in a few words."""
    content_hash: str
    hardware: str
    finished: str
    """When the last run ended, as text."""
    counted: tuple[str, ...]
    """Sentences that say how time was counted and what was done with schedules."""
    target: float | None
    """The report gives each recipe's time until this score; None means the worst final score."""
    entries: tuple[Entry, ...]


@dataclass(frozen=True)
class Section:
    """The entries of one task: best first, failed ones last."""

    task: Task
    entries: tuple[Entry, ...]
    main: Measure | None
    """The measure that orders the entries and is drawn; None where nothing was scored."""
    target: float | None
    """The table gives each entry's time until this value of `main`; None where there is none."""

    def reached(self, entry: Entry) -> float | None:
        """Minutes of training until the first checkpoint that was as good as the target; None if
        no checkpoint was."""
        assert self.main is not None and self.target is not None
        for point in entry.checkpoints:
            value = point.scores.get(self.main.name, math.nan)
            if self.main.at_least_as_good(value, self.target):
                return point.minutes
        return None


def sections(facts: Facts) -> list[Section]:
    """The entries by task, since the scores of two tasks cannot be compared."""
    tasks: tuple[Task, ...] = ("generate", "upscale", "translate")
    found = []
    for task in tasks:
        entries = [entry for entry in facts.entries if entry.task == task]
        if entries:
            found.append(_section(task, entries, facts.target if task == tasks[0] else None))
    return found


def _section(task: Task, entries: Sequence[Entry], target: float | None) -> Section:
    main = next((found for entry in entries if (found := _main(entry.measured))), None)
    if main is None:
        return Section(task, tuple(sorted(entries, key=_failed)), None, None)

    def rank(entry: Entry) -> tuple[bool, float]:
        value = entry.scores.get(main.name, math.nan)
        return _failed(entry), main.cost(value)

    ordered = tuple(sorted(entries, key=rank))
    finals = [entry.scores.get(main.name, math.nan) for entry in ordered if not entry.error]
    finals = [value for value in finals if math.isfinite(value)]
    if target is None and finals:
        target = max(finals, key=main.cost)
    return Section(task, ordered, main, target)


def _main(scores: Mapping[str, Score]) -> Measure | None:
    """The measure that orders recipes: the one that also chooses checkpoints, or else the PSNR over
    all images."""
    found = headline(scores)
    if found is None:
        psnr = [score for name, score in scores.items() if name.startswith("psnr_")]
        found = min(psnr, key=lambda score: len(score.name), default=None)
    return None if found is None else found.measure


def _known(section: Section) -> dict[str, Score]:
    """One score for each name that occurs in the section. References are the same for all entries,
    so any entry's will do."""
    return {name: score for entry in section.entries for name, score in entry.measured.items()}


def _failed(entry: Entry) -> bool:
    return entry.error is not None


# ---- tables ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cell:
    """A value as text; `best` says that it is the best of its column."""

    text: str
    best: bool = False


@dataclass(frozen=True)
class Table:
    """A table of entries. `heads` are the columns' names, each with an explanation; `references`
    are rows below the entries, which hold what real images or simple methods get."""

    heads: tuple[tuple[str, str], ...]
    rows: tuple[tuple[Entry, tuple[Cell, ...]], ...]
    references: tuple[tuple[str, tuple[Cell, ...]], ...] = ()


NONE = Cell("–")
_TOLD_APART = 2
"""So many standard errors of their difference tell two scores apart."""


def quality(section: Section) -> Table:
    """The table of the last checkpoints' scores, with the main measure first."""
    known = _known(section)
    measures = [score.measure for score in known.values()]
    measures.sort(key=lambda measure: section.main is None or measure.name != section.main.name)
    whole = [entry for entry in section.entries if not entry.error]
    best = {m.name: _best(whole, m) for m in measures}

    def cells(scores: Mapping[str, float], entry: Entry | None = None) -> tuple[Cell, ...]:
        shown = scores_of(scores, {})
        return tuple(
            Cell(shown[m.name].text, any(entry is one for one in best[m.name]))
            if m.name in scores
            else NONE
            for m in measures
        )

    rows = tuple((entry, cells(entry.scores, entry)) for entry in section.entries)
    beside = references(known.values())
    return Table(
        tuple((m.label, m.meaning) for m in measures),
        rows,
        tuple((label, cells(values)) for label, values in beside.items()),
    )


def _best(entries: Sequence[Entry], measure: Measure) -> list[Entry]:
    """The entries with the best value of a measure, and those that the error of their samples does
    not tell from it. None where it tells none of all apart."""
    value = measure.best(entry.scores for entry in entries)
    scored = [entry for entry in entries if measure.name in entry.scores]
    if value is None:
        return []

    def error(entry: Entry) -> float:
        found = entry.scores.get(error_name(measure.name), 0.0)
        return found if math.isfinite(found) else 0.0

    least = max(error(entry) for entry in scored if entry.scores[measure.name] == value)
    near = [
        entry
        for entry in scored
        if abs(entry.scores[measure.name] - value) <= _TOLD_APART * math.hypot(least, error(entry))
    ]
    return near if len(near) < len(scored) else []


def cost(section: Section) -> Table:
    """The table of what each recipe needed for its scores."""
    heads = [
        ("Images seen", "How many real images training has used, in thousands."),
        ("Training", "How long training took; saving and scoring do not count."),
        ("Images/s", "The speed over the whole training; saving and scoring do not count."),
        ("Generator", "How many parameters the networks have that make images."),
        ("Other networks", "How many parameters the other trained networks have."),
        ("Memory", "The most that one worker held, on its GPU or, on a CPU, in its process."),
        ("Workers", "How many workers shared each batch."),
    ]
    if section.main is not None and section.target is not None:
        score = f"{section.main.label} {number(section.target)}"
        heads.append((f"Time to {score}", "How long training took until a score was that good."))

    def cells(entry: Entry) -> tuple[Cell, ...]:
        speed, memory = entry.images_per_second, entry.memory_gib
        found = [
            Cell(f"{number(entry.kimg)} k"),
            Cell(duration(entry.minutes)),
            NONE if speed is None else Cell(number(speed)),
            Cell(_count(entry.generator_parameters)),
            Cell(_count(entry.other_parameters)),
            NONE if memory is None else Cell(f"{memory:.2f} GiB"),
            Cell(str(entry.workers)),
        ]
        if section.main is not None and section.target is not None:
            minutes = section.reached(entry)
            found.append(Cell("not reached") if minutes is None else Cell(duration(minutes)))
        return tuple(found)

    return Table(tuple(heads), tuple((e, cells(e)) for e in section.entries))


def duration(minutes: float) -> str:
    """A duration as text, such as `45 s`, `4.0 min` or `3 h 20 min`."""
    if minutes < 1:
        return f"{60 * minutes:.3g} s"
    if minutes < 100:
        return f"{minutes:.1f} min"
    return f"{minutes // 60:.0f} h {minutes % 60:02.0f} min"


def _count(parameters: int) -> str:
    if parameters < 10_000:
        return f"{parameters:,}"
    return f"{parameters / 1e6:.3g} M" if parameters >= 1e6 else f"{parameters / 1e3:.3g} k"


# ---- charts ------------------------------------------------------------------------------------

Over = Literal["minutes of training", "thousands of images seen"]


def chart(section: Section, over: Over) -> str | None:
    """An `<svg>` of the main measure of all entries; None where nothing was scored."""
    main = section.main
    if main is None:
        return None

    def shown(scores: Mapping[str, float]) -> str:
        return with_error(scores[main.name], scores.get(error_name(main.name)))

    def points(entry: Entry) -> tuple[charts.Point, ...]:
        return tuple(
            charts.Point(
                p.minutes if over == "minutes of training" else p.kimg,
                p.scores[main.name],
                f"{entry.recipe}: {main.label} {shown(p.scores)} at {number(p.kimg)} "
                f"kimg, {duration(p.minutes)}",
            )
            for p in entry.checkpoints
            if math.isfinite(p.scores.get(main.name, math.nan))
        )

    lines = [charts.Series(entry.recipe, points(entry)) for entry in section.entries]
    if not any(line.points for line in lines):
        return None
    levels = [
        (label, values[main.name])
        for label, values in references(_known(section).values()).items()
        if math.isfinite(values.get(main.name, math.nan))
    ]
    identity = f"{section.task}-{over.partition(' ')[0]}"
    return charts.line_chart(identity, over, main.label, lines, levels)
