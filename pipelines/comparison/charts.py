"""Line charts as SVG text, written by hand: no script, no file beside them. Pure functions.

A chart carries its own style, for light and dark screens. Lines differ by colour (a palette that
the colour-blind can tell apart), by mark and, from the fifth on, by dashes; their names stand at
their ends.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 600, 390
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 170, 14, 46
_LINE = 16  # between two lines of text
_LABEL_CHARS = 19
_LOGARITHMIC = 4
"""From this ratio of largest to smallest value on, an axis is logarithmic."""

LIGHT = ("#0072b2", "#c2500a", "#00805d", "#a8438a", "#8f6b00", "#4d4d4d", "#117c8c")
DARK = ("#56b4e9", "#ff8a4c", "#2cc295", "#e39cc9", "#e6b422", "#c4c4c4", "#5bd0e0")
_DASHES = ("", "7 4", "2 3")

_colours = "".join(f".chart .s{n}{{--s:{colour}}}" for n, colour in enumerate(LIGHT))
_dark_colours = "".join(f".chart .s{n}{{--s:{colour}}}" for n, colour in enumerate(DARK))
_STYLE = f"""\
.chart{{--ink:#1c1f23;--soft:#5b6470;--rule:#dfe3e8;--paper:#fff;font:13px system-ui,sans-serif}}
.chart text{{fill:var(--soft)}}.chart .name{{fill:var(--ink);font-weight:600}}
.chart .paper{{fill:var(--paper)}}.chart .rule{{stroke:var(--rule)}}
.chart .line{{fill:none;stroke:var(--s);stroke-width:2.2;stroke-linejoin:round}}
.chart .mark{{fill:var(--s);stroke:var(--paper);stroke-width:1.2}}
.chart .level{{stroke:var(--soft);stroke-width:1.3;stroke-dasharray:3 4}}
{_colours}
@media (prefers-color-scheme:dark){{.chart{{--ink:#eceff3;--soft:#a7b0bb;--rule:#343b45;\
--paper:#171b20}}{_dark_colours}}}"""


@dataclass(frozen=True)
class Point:
    """One value at a place, and what is said of it when a pointer rests there."""

    x: float
    y: float
    note: str


@dataclass(frozen=True)
class Series:
    """A line with its name. Points ascend in x; not-finite values are left out beforehand."""

    name: str
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Axis:
    """Where values lie on a side of the chart: linear from 0, or logarithmic."""

    low: float
    high: float
    logarithmic: bool
    ticks: tuple[float, ...]

    def place(self, value: float) -> float:
        """0 at the low end, 1 at the high end."""
        if self.logarithmic:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)


def axis(values: Sequence[float], may_be_logarithmic: bool) -> Axis:
    """An axis on which all values lie between its first and its last tick."""
    least, most = min(values), max(values)
    if may_be_logarithmic and least > 0 and most / least >= _LOGARITHMIC:
        return _logarithmic(least, most)
    least, most = min(least, 0.0), max(most, 0.0)
    step = _round_up((most - least) / 5 or 0.2)
    first, last = math.floor(least / step), math.ceil(most / step)
    if first == last:
        last += 1
    ticks = tuple(n * step for n in range(first, last + 1))
    return Axis(ticks[0], ticks[-1], False, ticks)


def _logarithmic(least: float, most: float) -> Axis:
    bottom, top = math.floor(math.log10(least)), math.ceil(math.log10(most))
    every = [m * 10.0**k for k in range(bottom, top + 1) for m in (1, 2, 5)]
    low = max(tick for tick in every if tick <= least * (1 + 1e-9))
    high = min(tick for tick in every if tick >= most * (1 - 1e-9))
    ticks = tuple(tick for tick in every if low <= tick <= high)
    return Axis(low, high, True, ticks)


def _round_up(step: float) -> float:
    """The next of 1, 2, 5, 10, 20, ..."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(m * power for m in (1, 2, 5, 10) if m * power >= step * (1 - 1e-9))


def line_chart(
    title: str,
    x_label: str,
    y_label: str,
    series: Sequence[Series],
    levels: Sequence[tuple[str, float]] = (),
) -> str:
    """An `<svg>` of the lines; `levels` are named horizontal lines, such as what real images get.

    There is at least one point.
    """
    xs = [point.x for line in series for point in line.points]
    ys = [point.y for line in series for point in line.points] + [y for _, y in levels]
    assert xs, "a chart has at least one point"
    x_axis, y_axis = axis(xs, False), axis(ys, True)

    def left(x: float) -> float:
        return _LEFT + x_axis.place(x) * (WIDTH - _LEFT - _RIGHT)

    def top(y: float) -> float:
        return _TOP + (1 - y_axis.place(y)) * (HEIGHT - _TOP - _BOTTOM)

    parts = [f'<rect class="paper" width="{WIDTH}" height="{HEIGHT}" rx="8"/>']
    for tick in y_axis.ticks:
        y = top(tick)
        parts.append(f'<path class="rule" d="M{_LEFT} {y:.1f}H{WIDTH - _RIGHT}"/>')
        parts.append(_text(_LEFT - 8, y + 4, f"{tick:.6g}", "end"))
    for tick in x_axis.ticks:
        parts.append(_text(left(tick), HEIGHT - _BOTTOM + 20, f"{tick:.6g}", "middle"))
    middle = (_LEFT + WIDTH - _RIGHT) / 2
    parts.append(_text(middle, HEIGHT - 8, x_label, "middle"))

    names: list[tuple[float, str, int | None]] = []  # height, text, number of the line
    for name, value in levels:
        y = top(value)
        parts.append(f'<path class="level" d="M{_LEFT} {y:.1f}H{WIDTH - _RIGHT}"/>')
        names.append((y, name, None))
    for number, line in enumerate(series):
        if not line.points:
            continue
        places = [(left(p.x), top(p.y)) for p in line.points]
        path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
        dash = _DASHES[number // 4 % len(_DASHES)]
        dashed = f' stroke-dasharray="{dash}"' if dash else ""
        marks = "".join(
            f"{_mark(number, *place)}<title>{escape(point.note)}</title></path>"
            for place, point in zip(places, line.points, strict=True)
        )
        colour = f"s{number % len(LIGHT)}"
        parts.append(f'<g class="{colour}"><path class="line"{dashed} d="{path}"/>{marks}</g>')
        names.append((places[-1][1], line.name, number))
    parts += _names(names)
    return (
        f'<svg class="chart" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'role="img" aria-label="{escape(f"{title}: {y_label} over {x_label}")}">'
        f"<style>{_STYLE}</style>{''.join(parts)}</svg>"
    )


def swatch(number: int) -> str:
    """The mark of a line, as a small picture for a table."""
    colour = f"s{number % len(LIGHT)}"
    return (
        f'<svg class="chart swatch" viewBox="0 0 14 14" aria-hidden="true">'
        f'<g class="{colour}">{_mark(number, 7, 7)}</path></g></svg>'
    )


def _mark(number: int, x: float, y: float) -> str:
    """The beginning of a path, not yet closed: round, square, triangle or diamond."""
    shape = (
        "m-4.5 0a4.5 4.5 0 1 0 9 0a4.5 4.5 0 1 0 -9 0z",
        "m-4 -4h8v8h-8z",
        "m0 -5.2l5 8.8h-10z",
        "m0 -5.6l5.6 5.6l-5.6 5.6l-5.6 -5.6z",
    )[number % 4]
    return f'<path class="mark" d="M{x:.1f} {y:.1f}{shape}">'


def _names(names: list[tuple[float, str, int | None]]) -> list[str]:
    """Names at the right of their lines, pushed apart where lines end close together."""
    found, lowest = [], -math.inf
    ordered = sorted(names, key=lambda name: name[0])
    room = HEIGHT - _BOTTOM - _LINE * len(ordered)
    for place, (y, text, line) in enumerate(ordered):
        lowest = max(min(y, room + _LINE * (place + 1)), lowest + _LINE)
        x = WIDTH - _RIGHT + 15
        short = text if len(text) <= _LABEL_CHARS else text[: _LABEL_CHARS - 1] + "…"
        if line is not None:
            found.append(f'<g class="s{line % len(LIGHT)}">{_mark(line, x + 3, lowest)}</path></g>')
        found.append(_text(x + 13, lowest + 4, short, "start", "" if line is None else "name"))
    return found


def _text(x: float, y: float, text: str, anchor: str, kind: str = "") -> str:
    css = f' class="{kind}"' if kind else ""
    return f'<text{css} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
