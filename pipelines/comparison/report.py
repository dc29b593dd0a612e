"""Turns the facts of a comparison into a page, Markdown, or text for a terminal. Pure functions.

The page is `report.html.j2`, styled by `report.css`. It stands alone: style, charts and pictures
are inside it, and there is no script, so it can be mailed or kept. Jinja escapes all text.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment

from gan_train.metrics.scores import number, references
from gan_train.text import html_templates, line
from gan_train.text import markdown as escaped
from pipelines.comparison.charts import DARK, LIGHT, MARKS
from pipelines.comparison.facts import (
    Cell,
    Facts,
    Over,
    Section,
    chart,
    cost,
    duration,
    quality,
    sections,
)
from pipelines.flows.progress import aligned

_OVER: dict[Over, str] = {
    "minutes of training": "time",
    "thousands of images seen": "images seen",
}
"""The x axes of a section's charts, each with its name in captions."""


def page(facts: Facts) -> str:
    """The report as one HTML document."""
    *names, last = [entry.recipe for entry in facts.entries]
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
        "quality": quality,
        "cost": cost,
        "marks": [*zip(MARKS, LIGHT, DARK, strict=True)],
    }
    return made


def markdown(facts: Facts) -> str:
    """The main figures as Markdown tables."""
    lines = [f"**{escaped(facts.budget)}** for each recipe, on {escaped(facts.data)}."]
    for section in sections(facts):
        lines += ["", escaped(verdict(section))]
        for table in (quality(section), cost(section)):
            heads = ["recipe", *(head for head, _ in table.heads)]
            lines += ["", _line(heads), f"| {' | '.join(['---', *['---:'] * len(table.heads)])} |"]
            for entry, cells in table.rows:
                lines.append(_line([entry.recipe, *(c.text for c in cells)], best=cells))
            lines += [_line([name, *(c.text for c in cells)]) for name, cells in table.references]
        failed = [entry for entry in section.entries if entry.error]
        lines += [f"\n**{escaped(e.recipe)} failed**: {escaped(e.error or '')}" for e in failed]
    return "\n".join(lines) + "\n"


def text(facts: Facts) -> str:
    """The order of the recipes and what each needed, as text for a terminal."""
    lines = []
    for section in sections(facts):
        lines += ["", line(verdict(section)), ""]
        table = cost(section)
        rows = [["", *(head for head, _ in table.heads)]]
        rows += [[e.recipe, *(cell.text for cell in cells)] for e, cells in table.rows]
        lines.append(aligned(rows))
        lines += [line(f"{e.recipe}: {note}") for e in section.entries for note in e.notes]
    return "\n".join(lines)


def _line(texts: Sequence[str], best: Sequence[Cell] = ()) -> str:
    bold = [False, *(cell.best for cell in best)] if best else [False] * len(texts)
    shown = (f"**{escaped(t)}**" if b else escaped(t) for t, b in zip(texts, bold, strict=True))
    return f"| {' | '.join(shown)} |"


def verdict(section: Section) -> str:
    """A sentence that says which recipe is best, and what the others and the references get."""
    main = section.main
    scored = [e for e in section.entries if main and not e.error and main.name in e.scores]
    if main is None or not scored:
        return "No recipe has a score to compare."
    first, *others = scored
    value = first.measured[main.name].text
    if others:
        way = {"lower": "lowest", "higher": "highest"}[main.better or "lower"]
        behind = ", ".join(f"{e.recipe} {e.measured[main.name].text}" for e in others)
        said = f"{first.recipe} has the {way} {main.label}: {value}, before {behind}"
    else:
        said = f"{first.recipe} has the {main.label} {value}"
    for label, values in references(first.measured.values()).items():
        if main.name in values:
            get = "get" if label.endswith("s") else "gets"
            said += f"; {label} {get} {number(values[main.name])}"
    return f"{said}."
