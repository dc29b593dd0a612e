"""Turns the facts of a comparison into a page, Markdown, or text for a terminal. Pure functions.

The page is `report.html.j2`, styled by `report.css`. It stands alone: style, charts and pictures
are inside it, and there is no script, so it can be mailed or kept. Jinja escapes all text.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment

from gan_train.metrics.scores import number
from gan_train.text import html_templates, line
from gan_train.text import markdown as escaped
from pipelines.comparison.charts import DARK, LIGHT, MARKS
from pipelines.comparison.facts import Facts, Over, Section, by_recipe, chart, duration, sections
from pipelines.comparison.tables import Cell, cost, cost_of_each, quality, quality_of_each
from pipelines.comparison.verdict import grounds, verdict
from pipelines.flows.progress import aligned

_OVER: dict[Over, str] = {
    "minutes of training": "time",
    "thousands of images seen": "images seen",
}
"""The x axes of a section's charts, each with its name in captions."""


def page(facts: Facts) -> str:
    """The report as one HTML document."""
    *names, last = dict.fromkeys(entry.recipe for entry in facts.entries)
    template = environment().get_template("report.html.j2")
    return template.render(
        facts=facts,
        title=f"{', '.join(names)} and {last}" if names else last,
        sections=[(section, _charts(section)) for section in sections(facts)],
        protocols={entry.task: entry.protocol for entry in facts.entries if entry.protocol},
    )


def _charts(section: Section) -> list[tuple[str, str]]:
    """The section's charts: x axis in words, and SVG of each; empty if nothing was scored."""
    return [(name, svg) for over, name in _OVER.items() if (svg := chart(section, over))]


def environment() -> Environment:
    """Templates of this folder, with what their tables need."""
    made = html_templates(Path(__file__).parent)
    made.filters |= {"number": number, "duration": duration}
    made.globals |= {
        "verdict": verdict,
        "by_recipe": by_recipe,
        "grounds": grounds,
        "quality": quality,
        "quality_of_each": quality_of_each,
        "cost": cost,
        "cost_of_each": cost_of_each,
        "remarks": remarks,
        "marks": [*zip(MARKS, LIGHT, DARK, strict=True)],
    }
    return made


def markdown(facts: Facts) -> str:
    """The main figures as Markdown tables."""
    each = "training" if facts.several else "recipe"
    lines = [f"**{escaped(facts.budget)}** for each {each}, on {escaped(facts.data)}."]
    for section in sections(facts):
        lines += ["", escaped(verdict(section))]
        for table in (quality(section), cost(section)):
            heads = ["recipe", *(head for head, _ in table.heads)]
            lines += ["", _line(heads), f"| {' | '.join(['---', *['---:'] * len(table.heads)])} |"]
            for recipe, cells in table.rows:
                lines.append(_line([recipe.label, *(c.text for c in cells)], best=cells))
            lines += [_line([name, *(c.text for c in cells)]) for name, cells in table.references]
        lines += [f"\n{escaped(sentence)}" for sentence in grounds(section)]
        failed = [entry for entry in section.entries if entry.error]
        lines += [f"\n**{escaped(e.label)} failed**: {escaped(e.error or '')}" for e in failed]
    return "\n".join(lines) + "\n"


def text(facts: Facts) -> str:
    """The order of the recipes and what each needed, as text for a terminal."""
    lines = []
    for section in sections(facts):
        lines += ["", line(verdict(section)), *map(line, grounds(section)), ""]
        table = cost(section)
        rows = [["", *(head for head, _ in table.heads)]]
        rows += [[recipe.label, *(cell.text for cell in cells)] for recipe, cells in table.rows]
        lines.append(aligned(rows))
        lines += [line(f"{name}: {note}") for name, note in remarks(section)]
    return "\n".join(lines)


def remarks(section: Section) -> list[tuple[str, str]]:
    """The notes on trainings, each with whose it is. What holds for all trainings of a recipe is
    said once."""
    found = []
    for recipe in section.recipes:
        for note in dict.fromkeys(note for entry in recipe.entries for note in entry.notes):
            whose = [entry.label for entry in recipe.entries if note in entry.notes]
            whole = len(whose) == len(recipe.entries)
            found += [(name, note) for name in ([recipe.recipe] if whole else whose)]
    return found


def _line(texts: Sequence[str], best: Sequence[Cell] = ()) -> str:
    bold = [False, *(cell.best for cell in best)] if best else [False] * len(texts)
    shown = (f"**{escaped(t)}**" if b else escaped(t) for t, b in zip(texts, bold, strict=True))
    return f"| {' | '.join(shown)} |"
