"""Arranges what a comparison found in tables: scores, and what they took. Pure functions.

A table has a row for each recipe. Where recipes were trained with several seeds, the row tells
means over trainings, and `quality_of_each` and `cost_of_each` have a row for each training.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from gan_train.metrics.scores import Measure, error_name, number, references, scores_of
from pipelines.comparison.facts import Entry, Section, Trainings, duration, known_scores
from pipelines.comparison.verdict import compared, mean_text


@dataclass(frozen=True)
class Cell:
    """A value as text; `best` says that it is the best of its column."""

    text: str
    best: bool = False


@dataclass(frozen=True)
class Table:
    """A table of recipes or trainings. `heads` are the columns' names, each with an explanation;
    `references` are rows below, which hold what real images or simple methods get; `bold` explains
    which cells are the best."""

    heads: tuple[tuple[str, str], ...]
    rows: tuple[tuple[Trainings, tuple[Cell, ...]], ...]
    references: tuple[tuple[str, tuple[Cell, ...]], ...] = ()
    bold: str = ""


NONE = Cell("–")
_TOLD_APART = 2
"""So many standard errors of their difference tell two scores apart."""
_BOLD = (
    "In bold are the best value of a column, if one is best, and those that the error of their "
    "samples does not tell from it."
)
_BOLD_MEANS = (
    "In bold are the best mean of a column, if one is best, and those that Student's t-test over "
    "trainings does not tell from it with 95% probability."
)
_TRAININGS = (
    "Trainings",
    "How many trainings ended, which differ in their seed alone. Scores are means over them. ± is "
    "the standard error of the mean over trainings: the mean of as many other seeds would "
    "typically differ by so much from that of very many. Of two trainings it tells little.",
)


def quality(section: Section) -> Table:
    """The table of the last checkpoints' scores, with the main measure first."""
    if not section.several:
        whole = [entry for entry in section.entries if not entry.error]
        return _of_each(section, {m.name: _best(whole, m) for m in _measures(section)}, _BOLD)
    measures = _measures(section)
    best = {m.name: _best_means(section.recipes, m) for m in measures}

    def cells(recipe: Trainings) -> tuple[Cell, ...]:
        shown = tuple(
            Cell(mean_text(recipe, m), recipe in best[m.name]) if recipe.values(m.name) else NONE
            for m in measures
        )
        return (_count_of(recipe), *shown)

    beside = references(known_scores(section).values())
    return Table(
        (_TRAININGS, *((m.label, m.meaning) for m in measures)),
        tuple((recipe, cells(recipe)) for recipe in section.recipes),
        tuple((label, (NONE, *_cells(values, measures))) for label, values in beside.items()),
        _BOLD_MEANS,
    )


def quality_of_each(section: Section) -> Table:
    """The table of the scores of each training, none of which is called the best."""
    return _of_each(section, {}, "")


def _of_each(section: Section, best: Mapping[str, Sequence[Entry]], bold: str) -> Table:
    measures = _measures(section)
    rows = tuple(
        (Trainings((entry,)), _cells(entry.scores, measures, entry, best))
        for entry in section.entries
    )
    beside = references(known_scores(section).values())
    return Table(
        tuple((m.label, m.meaning) for m in measures),
        rows,
        tuple((label, _cells(values, measures)) for label, values in beside.items()),
        bold,
    )


def _measures(section: Section) -> list[Measure]:
    measures = [score.measure for score in known_scores(section).values()]
    measures.sort(key=lambda measure: section.main is None or measure.name != section.main.name)
    return measures


def _cells(
    scores: Mapping[str, float],
    measures: Sequence[Measure],
    entry: Entry | None = None,
    best: Mapping[str, Sequence[Entry]] | None = None,
) -> tuple[Cell, ...]:
    shown, best = scores_of(scores, {}), best or {}
    return tuple(
        Cell(shown[m.name].text, any(entry is one for one in best.get(m.name, ())))
        if m.name in scores
        else NONE
        for m in measures
    )


def _count_of(recipe: Trainings) -> Cell:
    ended, count = len(recipe.ended), len(recipe.entries)
    return Cell(str(count) if ended == count else f"{ended} of {count}")


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


def _best_means(recipes: Sequence[Trainings], measure: Measure) -> list[Trainings]:
    """The recipes with the best mean of a measure, and those that chance between seeds does not
    tell from it. None where it tells none of all apart."""
    scored = [recipe for recipe in recipes if recipe.values(measure.name)]
    finite = [recipe for recipe in scored if math.isfinite(recipe.mean(measure.name))]
    if measure.better is None or len(scored) < 2 or not finite:
        return []
    first = min(finite, key=lambda recipe: measure.cost(recipe.mean(measure.name)))

    def told_apart(recipe: Trainings) -> bool:
        found = compared(first, recipe, measure)
        return found is not None and found.verdict == "better"

    near = [recipe for recipe in finite if recipe is first or not told_apart(recipe)]
    return near if len(near) < len(scored) else []


def cost(section: Section) -> Table:
    """The table of what each recipe needed for its scores: of several trainings, their means, and
    the most memory. Where any ended, those that failed do not count."""
    return _cost(section, section.recipes)


def cost_of_each(section: Section) -> Table:
    """The table of what each training needed for its scores."""
    return _cost(section, [Trainings((entry,)) for entry in section.entries])


def _cost(section: Section, rows: Sequence[Trainings]) -> Table:
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

    def cells(recipe: Trainings) -> tuple[Cell, ...]:
        one, counted = recipe.entries[0], recipe.ended or recipe.entries
        speeds = [e.images_per_second for e in counted if e.images_per_second is not None]
        memory = [e.memory_gib for e in counted if e.memory_gib is not None]
        found = [
            Cell(f"{number(fmean(e.kimg for e in counted))} k"),
            Cell(duration(fmean(e.minutes for e in counted))),
            Cell(number(fmean(speeds))) if speeds else NONE,
            Cell(_count(one.generator_parameters)),
            Cell(_count(one.other_parameters)),
            Cell(f"{max(memory):.2f} GiB") if memory else NONE,
            Cell(str(one.workers)),
        ]
        if section.main is not None and section.target is not None:
            found.append(_time_to_target(section, counted))
        return tuple(found)

    return Table(tuple(heads), tuple((recipe, cells(recipe)) for recipe in rows))


def _time_to_target(section: Section, entries: Sequence[Entry]) -> Cell:
    """The mean time until the section's target; how many reached it, where not all did."""
    times = [time for entry in entries if (time := section.reached(entry)) is not None]
    if times and len(times) < len(entries):
        return Cell(f"reached by {len(times)} of {len(entries)}")
    return Cell(duration(fmean(times))) if times else Cell("not reached")


def _count(parameters: int) -> str:
    if parameters < 10_000:
        return f"{parameters:,}"
    return f"{parameters / 1e6:.3g} M" if parameters >= 1e6 else f"{parameters / 1e3:.3g} k"
