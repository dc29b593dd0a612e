"""Draws small line charts as SVG text, in milliseconds: a page is written while training waits.

Colours are classes (`s0`, `s1`, ...) whose style is the page's. Pure functions. Charts of a report,
with marks and notes, are drawn by Matplotlib (`pipelines/comparison/charts.py`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

WIDTH, HEIGHT = 560, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 12, 10, 28
_MOST_POINTS = 240
"""A longer line is drawn by the means of neighbouring points."""
_LOGARITHMIC = 30.0
"""From this ratio of largest to smallest value on, the y axis is logarithmic."""
_COLOURS = 8


@dataclass(frozen=True)
class Line:
    """A line with its name, through points (x, y), ascending in x; `errors` are the half heights of
    a band around it."""

    name: str
    points: Sequence[tuple[float, float]]
    errors: Sequence[float] = field(default=())


@dataclass(frozen=True)
class Chart:
    """A chart as SVG, with its lines' names and colours for a legend."""

    title: str
    svg: str
    legend: Sequence[tuple[str, str]]


def chart(
    title: str,
    lines: Sequence[Line],
    levels: Sequence[tuple[str, float]] = (),
    moments: Sequence[float] = (),
) -> Chart | None:
    """A chart over thousands of images; None without a finite point. `levels` are named horizontal
    lines, `moments` vertical ones."""
    drawn = [line for line in map(_finite, lines) if line.points]
    if not drawn:
        return None
    xs = [x for line in drawn for x, _ in line.points]
    ys = [y for line in drawn for _, y in line.points]
    ys += [value for _, value in levels if math.isfinite(value)]
    logarithmic = min(ys) > 0 and max(ys) / min(ys) >= _LOGARITHMIC
    x_ticks = _ticks(min(0.0, *xs), max(xs), 6)
    y_ticks = _decades(min(ys), max(ys)) if logarithmic else _ticks(min(ys), max(ys), 5)

    def across(x: float) -> float:
        share = (x - x_ticks[0]) / (x_ticks[-1] - x_ticks[0])
        return _LEFT + share * (WIDTH - _LEFT - _RIGHT)

    def up(y: float) -> float:
        low, high = y_ticks[0], y_ticks[-1]
        if logarithmic:
            y, low, high = math.log(max(y, low)), math.log(low), math.log(high)
        share = min(max((y - low) / (high - low), 0.0), 1.0)
        return HEIGHT - _BOTTOM - share * (HEIGHT - _TOP - _BOTTOM)

    parts = []
    for tick in y_ticks:
        parts.append(_rule("grid", _LEFT, up(tick), WIDTH - _RIGHT, up(tick)))
        parts.append(_text(_LEFT - 7, up(tick) + 4, f"{tick:.4g}", "end"))
    for tick in x_ticks:
        parts.append(_text(across(tick), HEIGHT - 9, f"{tick:.4g}", "middle"))
    for moment in moments:
        if x_ticks[0] <= moment <= x_ticks[-1]:
            parts.append(_rule("moment", across(moment), _TOP, across(moment), HEIGHT - _BOTTOM))
    for name, value in levels:
        if math.isfinite(value):
            parts.append(_rule("level", _LEFT, up(value), WIDTH - _RIGHT, up(value)))
            above = up(value) > _TOP + 12
            parts.append(_text(WIDTH - _RIGHT, up(value) + (-5 if above else 14), name, "end"))
    legend = []
    for number, line in enumerate(drawn):
        colour = f"s{number % _COLOURS}"
        legend.append((line.name, colour))
        if line.errors:
            upper = [(x, y + e) for (x, y), e in zip(line.points, line.errors, strict=True)]
            lower = [(x, y - e) for (x, y), e in zip(line.points, line.errors, strict=True)]
            around = _path([(across(x), up(y)) for x, y in [*upper, *reversed(lower)]])
            parts.append(f'<path class="band {colour}" d="{around}Z"/>')
        placed = [(across(x), up(y)) for x, y in line.points]
        parts.append(f'<path class="line {colour}" d="{_path(placed)}"/>')
        dots = placed if len(placed) <= 40 and line.errors else placed[-1:]
        parts += [f'<circle class="{colour}" cx="{x:.1f}" cy="{y:.1f}" r="3"/>' for x, y in dots]
    svg = (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">'
        f"{''.join(parts)}</svg>"
    )
    return Chart(title, svg, legend)


def _finite(line: Line) -> Line:
    """The line without points that are no numbers, and thinned where it is long."""
    kept = [i for i, (_, y) in enumerate(line.points) if math.isfinite(y)]
    errors = [line.errors[i] for i in kept] if line.errors else []
    points = [line.points[i] for i in kept]
    if len(points) <= _MOST_POINTS or errors:
        return Line(line.name, points, errors)
    width = math.ceil(len(points) / _MOST_POINTS)
    groups = [points[i : i + width] for i in range(0, len(points), width)]
    return Line(
        line.name, [(g[-1][0], math.fsum(y for _, y in g) / len(g)) for g in groups], errors
    )


def _ticks(low: float, high: float, about: int) -> list[float]:
    """Round numbers, `about` many, from below `low` to above `high`."""
    span = high - low or abs(high) or 1.0
    rough = span / about
    magnitude = 10.0 ** math.floor(math.log10(rough))
    step = next(m for m in (1, 2, 2.5, 5, 10) if m * magnitude >= rough * 0.999) * magnitude
    first = math.floor(low / step + 1e-9)
    last = max(math.ceil(high / step - 1e-9), first + 1)
    return [round(i * step, 12) for i in range(first, last + 1)]


def _decades(low: float, high: float) -> list[float]:
    """Powers of ten around both values, at most seven."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    step = math.ceil((last - first) / 6) or 1
    return [10.0**e for e in range(first, max(last, first + 1) + step, step)]


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)


def _rule(kind: str, x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
