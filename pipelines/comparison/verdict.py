"""Says in sentences which recipe is best, and how sure that is. Pure functions.

Recipes that were trained once are put in order, and no more: what seeds do to their scores is not
known. Recipes that were trained with several seeds are compared by Student's t-test
(`pipelines/registry/evidence.py`), which each pair has to itself: a third recipe whose trainings
lie far apart does not hide what tells the two apart.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from gan_train.metrics.scores import Measure, number, references, with_error
from pipelines.comparison.facts import Section, Trainings
from pipelines.registry.evidence import ENOUGH, Comparison, compare_means, error_of_mean, percent

_ONCE = (
    "Each recipe was trained once. Scores of one training each do not tell recipes apart, unless "
    "they differ by more than another seed would move them; --seeds 3 trains each recipe three "
    "times, and tells how sure the order is."
)


def mean_text(recipe: Trainings, measure: Measure) -> str:
    """The mean over trainings with its standard error, such as `50.2 ± 2.1`."""
    return with_error(recipe.mean(measure.name), error_of_mean(recipe.values(measure.name)))


def compared(a: Trainings, b: Trainings, measure: Measure) -> Comparison | None:
    """Whether a is better than b over trainings; None where their deviation is not known, or where
    a score is no number."""
    costs = [[measure.cost(v) for v in recipe.values(measure.name)] for recipe in (a, b)]
    if not all(math.isfinite(cost) for one in costs for cost in one):
        return None
    return compare_means(*costs)


def verdict(section: Section) -> str:
    """A sentence or two that say which recipe is best, and what the others and the references
    get."""
    main = section.main
    scored = [recipe for recipe in section.recipes if main and recipe.values(main.name)]
    if main is None or not scored:
        return "No recipe has a score to compare."
    said = _over_trainings(scored, main) if section.several else _once(scored, main)
    known = (score for entry in scored[0].ended for score in entry.measured.values())
    for label, values in references(known).items():
        if main.name in values:
            get = "get" if label.endswith("s") else "gets"
            said += f"; {label} {get} {number(values[main.name])}"
    return f"{said}."


def _once(scored: Sequence[Trainings], main: Measure) -> str:
    texts = [recipe.entries[0].measured[main.name].text for recipe in scored]
    _, *others = (f"{r.recipe} {text}" for r, text in zip(scored, texts, strict=True))
    if not others:
        return f"{scored[0].recipe} has the {main.label} {texts[0]}"
    way = {"lower": "lowest", "higher": "highest"}[main.better or "lower"]
    return f"{scored[0].recipe} has the {way} {main.label}: {texts[0]}, before {', '.join(others)}"


def _over_trainings(scored: Sequence[Trainings], main: Measure) -> str:
    first, *others = scored
    values = [f"{mean_text(one, main)} ({_trainings(one, main)})" for one in scored]
    if not others:
        return f"{first.recipe} has the {main.label} {values[0]}"
    found = [(o, compared(first, o, main)) for o in others if math.isfinite(o.mean(main.name))]
    ahead = [(o, c.sure) for o, c in found if c is not None and c.verdict == "better"]
    near = [o for o, c in found if c is None or c.verdict != "better"]
    answers = []
    if near:
        answers.append(f"{_names([first, *near])} tie")
    if ahead:
        sure = percent(min(sure for _, sure in ahead))
        least = "at least " if len(ahead) > 1 else ""
        than = _names([other for other, _ in ahead])
        answers.append(f"{first.recipe} is better than {than}, {least}{sure} sure")
    listed = ", ".join(f"{r.recipe} {text}" for r, text in zip(scored, values, strict=True))
    answer = f"{'; '.join(answers)}. " if answers else ""
    return f"{answer}{main.label}: {listed}"


def grounds(section: Section) -> list[str]:
    """Sentences that say how sure the order of recipes is, and what would make it surer; none where
    there is only one recipe with a score."""
    main = section.main
    scored = [r for r in section.recipes if main and math.isfinite(r.mean(main.name))]
    if main is None or len(scored) < 2:
        return []
    if not section.several:
        return [_ONCE]
    first, *others = scored
    return [_ground(first, other, main) for other in others]


def _ground(first: Trainings, other: Trainings, main: Measure) -> str:
    found = compared(first, other, main)
    if found is None:
        return (
            f"Whether {first.recipe} is better than {other.recipe} cannot be told: too few of "
            "their trainings ended to tell how far a seed moves a score."
        )
    seeds = f"(between seeds {number(found.deviation.value)}, {found.deviation.origin})"
    if found.verdict == "better":
        sure = percent(found.sure)
        return (
            f"By {main.label}, {first.recipe} is better than {other.recipe}, {sure} sure {seeds}."
        )
    return (
        f"By {main.label}, {first.recipe} and {other.recipe} tie: {first.recipe} is better with a "
        f"probability of {percent(found.sure)}, where {percent(ENOUGH)} are needed {seeds}; "
        f"{found.more}."
    )


def _trainings(recipe: Trainings, main: Measure) -> str:
    count = len(recipe.values(main.name))
    return f"{count} training{'s' if count > 1 else ''}"


def _names(recipes: Sequence[Trainings]) -> str:
    *names, last = [recipe.recipe for recipe in recipes]
    return f"{', '.join(names)} and {last}" if names else last
