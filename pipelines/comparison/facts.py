"""What a comparison of recipes found, and how it is arranged in sections, tables and charts. Pure.

`Facts` are stored as JSON beside a report, and hold all of it. Scores are stored flat there;
`gan_train/metrics/scores.py` says what their names mean.
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
    headline,
    references,
    scores_of,
)
from pipelines.comparison import charts

Scores = dict[str, float]


class _Fact(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")


class Picture(_Fact):
    """A grid of samples, inside the page."""

    png: str
    """Base64."""
    width: int
    height: int
    text: str
    """What it shows, in words."""


class Scored(_Fact):
    """A checkpoint: where training stood, and its scores."""

    kimg: float
    minutes: float
    """Of training so far, without saving and scoring."""
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
    """Of training, without saving and scoring."""
    memory_gib: float | None
    """Peak of one worker."""
    checkpoints: tuple[Scored, ...]
    lengths: Scores = {}
    """Path lengths of the last checkpoint."""
    protocol: Protocol = {}
    notes: tuple[str, ...] = ()
    picture: Picture | None = None
    settings: str = ""
    """The resolved recipe, as YAML."""
    error: str | None = None
    """Why it has failed; what it had reached until then stands in the other fields."""

    @property
    def scores(self) -> Scores:
        """Those of the last checkpoint, path lengths included; empty where none was scored."""
        return (self.checkpoints[-1].scores if self.checkpoints else {}) | self.lengths

    @property
    def measured(self) -> dict[str, Score]:
        """The same as records, each with its references."""
        return scores_of(self.scores, self.protocol)

    @property
    def images_per_second(self) -> float | None:
        """Over the whole training, without saving and scoring."""
        return 1000 * self.kimg / (60 * self.minutes) if self.minutes else None


class Facts(_Fact):
    """A whole comparison."""

    id: str
    budget: str
    data: str
    """The data set in a few words."""
    content_hash: str
    hardware: str
    finished: str
    """When, as text."""
    counted: tuple[str, ...]
    """How time was counted and what was done with schedules, a sentence each."""
    target: float | None
    """Score whose time is told; empty: the worst of the final ones."""
    entries: tuple[Entry, ...]


@dataclass(frozen=True)
class Section:
    """The entries of one task, best first, those that failed last."""

    task: Task
    entries: tuple[Entry, ...]
    main: Measure | None
    """What they are ordered by and drawn; none where nothing was scored."""
    target: float | None

    def reached(self, entry: Entry) -> float | None:
        """Minutes until a checkpoint first had the target score; None if none had."""
        assert self.main is not None and self.target is not None
        for point in entry.checkpoints:
            value = point.scores.get(self.main.name, math.nan)
            if self.main.at_least_as_good(value, self.target):
                return point.minutes
        return None


def sections(facts: Facts) -> list[Section]:
    """The entries by task: their scores are different measures."""
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
    """The measure that decides; where none does that chooses checkpoints, the PSNR of all images
    together."""
    found = headline(scores)
    if found is None:
        psnr = [score for name, score in scores.items() if name.startswith("psnr_")]
        found = min(psnr, key=lambda score: len(score.name), default=None)
    return None if found is None else found.measure


def _known(section: Section) -> dict[str, Score]:
    """One score for each name that any entry has; the references beside it are those of all."""
    return {name: score for entry in section.entries for name, score in entry.measured.items()}


def _failed(entry: Entry) -> bool:
    return entry.error is not None


# ---- tables ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cell:
    """A value as text; `best` of its column is set off."""

    text: str
    best: bool = False


@dataclass(frozen=True)
class Table:
    """Column heads with explanations, rows of cells behind their names, and below the references:
    what real images or simple methods get."""

    heads: tuple[tuple[str, str], ...]
    rows: tuple[tuple[Entry, tuple[Cell, ...]], ...]
    references: tuple[tuple[str, tuple[Cell, ...]], ...] = ()


NONE = Cell("–")


def quality(section: Section) -> Table:
    """The scores of the last checkpoints."""
    known = _known(section)
    measures = [score.measure for score in known.values()]
    best = {m.name: m.best(e.scores for e in section.entries if not e.error) for m in measures}
    several = sum(not entry.error for entry in section.entries) > 1

    def cells(scores: Mapping[str, float], may_win: bool) -> tuple[Cell, ...]:
        return tuple(
            Cell(number(scores[m.name]), may_win and scores[m.name] == best[m.name])
            if m.name in scores
            else NONE
            for m in measures
        )

    rows = tuple((e, cells(e.scores, several and not e.error)) for e in section.entries)
    beside = references(known.values())
    return Table(
        tuple((m.label, m.meaning) for m in measures),
        rows,
        tuple((label, cells(values, False)) for label, values in beside.items()),
    )


def cost(section: Section) -> Table:
    """What each recipe needed for its scores."""
    heads = [
        ("Images seen", "Thousands of real images shown in training."),
        ("Training", "Minutes, without saving and scoring."),
        ("Images/s", "Over the whole training, saving and scoring left out."),
        ("Generator", "Parameters of the networks that make images."),
        ("Other networks", "Parameters of the other networks that are trained."),
        ("Memory", "Peak of one worker, in GiB: of the GPU, or of the process on a CPU."),
        ("Workers", "Data-parallel workers."),
    ]
    if section.main is not None and section.target is not None:
        score = f"{section.main.label} {number(section.target)}"
        heads.append((f"Time to {score}", "Training until a scored checkpoint was that good."))

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


def number(value: float) -> str:
    """Three digits that matter, but none behind the fourth decimal; an exponent for the rare."""
    if not math.isfinite(value):
        return "no number"
    if abs(value) < 0.001:
        return f"{round(value, 4) + 0.0:g}" if round(value, 4) else "0"
    if abs(value) < 1000:
        return f"{value:.3g}"
    return f"{value:,.0f}" if abs(value) < 1e7 else f"{value:.2e}"


def duration(minutes: float) -> str:
    """`45 s`, `4.0 min` or `3 h 20 min`."""
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
    """The main measure of all entries, as an `<svg>`; None where nothing was scored."""
    main = section.main
    if main is None:
        return None

    def points(entry: Entry) -> tuple[charts.Point, ...]:
        return tuple(
            charts.Point(
                p.minutes if over == "minutes of training" else p.kimg,
                p.scores[main.name],
                f"{entry.recipe}: {main.label} {number(p.scores[main.name])} at {number(p.kimg)} "
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
