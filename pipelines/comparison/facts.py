"""Holds what a comparison found, and arranges it in sections and charts. Pure functions.

`tables.py` arranges it in tables. `Facts` hold everything that a report shows, and are stored as
JSON beside it. Scores are stored flat; `gan_train/metrics/scores.py` says what their names mean.
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
    """What one training of a recipe did with the budget."""

    recipe: str
    seed: int | None = None
    """The training's seed; None where the recipe was trained once."""
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
    """Why the training failed; the other fields hold what it had reached until then."""

    @property
    def label(self) -> str:
        """The recipe's name, with the seed where it was trained with several."""
        return self.recipe if self.seed is None else f"{self.recipe} seed {self.seed}"

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

    @property
    def several(self) -> bool:
        """Whether recipes were trained with several seeds."""
        return any(entry.seed is not None for entry in self.entries)


@dataclass(frozen=True)
class Trainings:
    """The trainings of one recipe, in the order of their seeds; at least one."""

    entries: tuple[Entry, ...]

    @property
    def recipe(self) -> str:
        """The recipe's name."""
        return self.entries[0].recipe

    @property
    def label(self) -> str:
        """The recipe's name; with the seed, where this is one of several trainings."""
        return self.entries[0].label if len(self.entries) == 1 else self.recipe

    @property
    def family(self) -> str:
        """The recipe's family."""
        return self.entries[0].family

    @property
    def ended(self) -> tuple[Entry, ...]:
        """The trainings that did not fail."""
        return tuple(entry for entry in self.entries if not entry.error)

    @property
    def error(self) -> str | None:
        """Why the first training failed, if all did; else None."""
        return None if self.ended else self.entries[0].error

    def values(self, measure: str) -> list[float]:
        """The final scores by this measure, of the trainings that did not fail."""
        return [e.scores[measure] for e in self.ended if measure in e.scores]

    def mean(self, measure: str) -> float:
        """The mean of the final scores; no number if there is none, or if one is no number."""
        values = self.values(measure)
        return sum(values) / len(values) if values else math.nan


@dataclass(frozen=True)
class Section:
    """The entries of one task: those of the best recipe first, failed ones last."""

    task: Task
    entries: tuple[Entry, ...]
    main: Measure | None
    """The measure that orders the entries and is drawn; None where nothing was scored."""
    target: float | None
    """The table gives each entry's time until this value of `main`; None where there is none."""

    @property
    def recipes(self) -> tuple[Trainings, ...]:
        """The entries by recipe, in the same order."""
        return by_recipe(self.entries)

    @property
    def several(self) -> bool:
        """Whether recipes were trained with several seeds."""
        return any(entry.seed is not None for entry in self.entries)

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

    def rank(recipe: Trainings) -> tuple[bool, float]:
        return recipe.error is not None, main.cost(recipe.mean(main.name)) if main else 0.0

    recipes = sorted(by_recipe(entries), key=rank)
    ordered = tuple(entry for recipe in recipes for entry in recipe.entries)
    if main is None:
        return Section(task, ordered, None, None)
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


def known_scores(section: Section) -> dict[str, Score]:
    """One score for each name that occurs in the section. References are the same for all entries,
    so any entry's will do."""
    return {name: score for entry in section.entries for name, score in entry.measured.items()}


def by_recipe(entries: Sequence[Entry]) -> tuple[Trainings, ...]:
    """The entries by recipe, in the order of the first of each."""
    found: dict[str, list[Entry]] = {}
    for entry in entries:
        found.setdefault(entry.recipe, []).append(entry)
    return tuple(Trainings(tuple(of_one)) for of_one in found.values())


def duration(minutes: float) -> str:
    """A duration as text, such as `45 s`, `4.0 min` or `3 h 20 min`."""
    if minutes < 1:
        return f"{60 * minutes:.3g} s"
    if minutes < 100:
        return f"{minutes:.1f} min"
    return f"{minutes // 60:.0f} h {minutes % 60:02.0f} min"


# ---- charts ------------------------------------------------------------------------------------

Over = Literal["minutes of training", "thousands of images seen"]


def chart(section: Section, over: Over) -> str | None:
    """An `<svg>` of the main measure of all entries, the trainings of a recipe in one colour; None
    where nothing was scored."""
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
                f"{entry.label}: {main.label} {shown(p.scores)} at {number(p.kimg)} "
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
        for label, values in references(known_scores(section).values()).items()
        if math.isfinite(values.get(main.name, math.nan))
    ]
    identity = f"{section.task}-{over.partition(' ')[0]}"
    return charts.line_chart(identity, over, main.label, lines, levels)
