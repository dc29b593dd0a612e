"""Draws line charts as SVG text with Matplotlib. Pure functions.

A chart is legible in a page and alone, on light and dark screens, and needs no script and no file
beside it. Lines differ by colour (a palette that the colour-blind can tell apart) and by mark, and
from the eighth on by dashes. The same lines give the same text.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from typing import Any
from xml.dom import minidom

WIDTH, HEIGHT = 600, 390
_NAME_CHARS = 22  # a longer name is cut, so that it leaves room for the lines
_LOGARITHMIC = 4
"""From this ratio of largest to smallest value on, an axis is logarithmic."""
_ROUNDING = 1e-9
"""A tick and a value count as equal if their relative difference is at most this."""

MARKS = "●■▲◆▼◄★"
"""The marks of the first, second, ... line, as characters for a table."""
LIGHT = ("#0072b2", "#c2500a", "#00805d", "#a8438a", "#8f6b00", "#4d4d4e", "#117c8c")
"""The colours of the first, second, ... line on a light screen."""
DARK = ("#56b4e9", "#ff8a4c", "#2cc295", "#e39cc9", "#e6b422", "#c4c4c4", "#5bd0e0")
"""The colours of the first, second, ... line on a dark screen."""
_MATPLOTLIB_MARKS = "os^Dv<*"
"""Matplotlib's letters for the shapes of `MARKS`."""
_DASHES = ("-", (0, (6, 3)), (0, (2, 2)))
_INK, _SOFT, _RULE, _PAPER = "#1c1f23", "#5b6470", "#dfe3e8", "#ffffff"

_ON_DARK = dict(zip(LIGHT, DARK, strict=True)) | {
    _INK: "#eceff3",
    _SOFT: "#a7b0bb",
    _RULE: "#343b45",
    _PAPER: "#171b20",
}


def _style(on_dark: Mapping[str, str]) -> str:
    """The CSS of a chart. Matplotlib writes the colours of a light screen into each shape; these
    rules replace them on a dark screen."""
    rules = "".join(
        f".chart [style*='{what}: {light}']{{{what}:{dark}!important}}"
        for light, dark in on_dark.items()
        for what in ("fill", "stroke")
    )
    return (
        ".chart *{stroke-linejoin:round}.chart text{font-family:system-ui,sans-serif!important}"
        f"@media (prefers-color-scheme:dark){{{rules}}}"
    )


_SETTINGS: dict[str, Any] = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "gan-train",
    "text.parse_math": False,  # a name may hold a dollar sign
    "font.family": "DejaVu Sans",  # comes with Matplotlib; a page shows its own
    "font.size": 15,
    "text.color": _INK,
    "axes.labelcolor": _SOFT,
    "axes.edgecolor": _RULE,
    "axes.facecolor": "none",
    "figure.facecolor": _PAPER,
    "grid.color": _RULE,
    "xtick.color": _RULE,
    "xtick.labelcolor": _SOFT,
    "ytick.color": _RULE,
    "ytick.labelcolor": _SOFT,
    "ytick.major.size": 0,
    "xtick.major.size": 0,
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
}


@dataclass(frozen=True)
class Point:
    """A point of a line; `note` is what a screen shows when a pointer rests on it."""

    x: float
    y: float
    note: str


@dataclass(frozen=True)
class Series:
    """A line with its name. All values are finite, and points ascend in x. Lines of one name look
    alike, and share an entry of the legend."""

    name: str
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Axis:
    """An axis that is logarithmic, or linear and includes 0; its outer ticks are its ends."""

    ticks: tuple[float, ...]
    logarithmic: bool


def axis(values: Sequence[float], may_be_logarithmic: bool) -> Axis:
    """An axis on which all values lie between its first and its last tick."""
    from matplotlib.ticker import MaxNLocator

    least, most = min(values), max(values)
    logarithmic = may_be_logarithmic and least > 0 and most / least >= _LOGARITHMIC
    if logarithmic:
        decades = range(math.floor(math.log10(least)), math.ceil(math.log10(most)) + 1)
        places = [digit * 10.0**decade for decade in decades for digit in (1, 2, 5)]
    else:
        least, most = min(least, 0.0), max(most, 0.0)
        most = most if least < most else 1.0
        places = [*map(float, MaxNLocator(5, steps=(1, 2, 5, 10)).tick_values(least, most))]
    low = max(place for place in places if place <= least + _ROUNDING * abs(least))
    high = min(place for place in places if place >= most - _ROUNDING * abs(most))
    return Axis(tuple(place for place in places if low <= place <= high), logarithmic)


def line_chart(
    identity: str,
    x_label: str,
    y_label: str,
    series: Sequence[Series],
    levels: Sequence[tuple[str, float]] = (),
) -> str:
    """An `<svg>` of the lines; `levels` are named horizontal lines, such as what real images get.

    There is at least one point. Names stand in a legend, in the order of the lines' ends (of lines
    of one name, the mean of their ends) from top to bottom. The chart's ids begin with `identity`
    (letters, digits and hyphens), which differs from that of other charts in a page.
    """
    from matplotlib import style
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    xs = [point.x for line in series for point in line.points]
    ys = [point.y for line in series for point in line.points] + [y for _, y in levels]
    assert xs, "a chart has at least one point"
    x_axis, y_axis = axis(xs, False), axis(ys, True)
    # the user's own settings of Matplotlib are set aside here, and restored afterwards
    with style.context(_SETTINGS, after_reset=True):
        figure = Figure((WIDTH / 72, HEIGHT / 72), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        axes.set_xlabel(x_label)
        if y_axis.logarithmic:
            axes.set_yscale("log")
        axes.set_xlim(x_axis.ticks[0], x_axis.ticks[-1])
        axes.set_ylim(y_axis.ticks[0], y_axis.ticks[-1])
        axes.set_xticks(x_axis.ticks, [f"{tick:.6g}" for tick in x_axis.ticks])
        axes.set_yticks(y_axis.ticks, [f"{tick:.6g}" for tick in y_axis.ticks])
        axes.set_yticks([], minor=True)
        axes.grid(axis="y")
        drawn = [
            (y, axes.axhline(y, color=_SOFT, linestyle=(0, (3, 3)), linewidth=1.3), name)
            for name, y in levels
        ]
        names = list(dict.fromkeys(line.name for line in series))
        slight = len(names) < len(series)  # there are more lines than recipes
        shapes: dict[str, Any] = {}
        for place, line in enumerate(series):
            number = names.index(line.name)
            if line.points:
                (shapes[line.name],) = axes.plot(
                    [point.x for point in line.points],
                    [point.y for point in line.points],
                    color=LIGHT[number % len(LIGHT)],
                    marker=_MATPLOTLIB_MARKS[number % len(LIGHT)],
                    markersize=(11 if MARKS[number % len(MARKS)] == "★" else 8) - 2 * slight,
                    markeredgewidth=0,
                    linestyle=_DASHES[number // len(LIGHT) % len(_DASHES)],
                    linewidth=1.6 if slight else 2.2,
                    clip_on=False,  # marks at the edge are not cut
                    gid=f"line-{place}",
                )
        for name, shape in shapes.items():
            ends = [line.points[-1].y for line in series if line.points and line.name == name]
            drawn.append((sum(ends) / len(ends), shape, name))
        drawn.sort(key=lambda ended: -ended[0])
        figure.legend(
            [shape for _, shape, _ in drawn],
            [_short(name) for _, _, name in drawn],
            loc="outside right center",
            frameon=False,
            handlelength=2.4,
            handletextpad=0.6,
            borderaxespad=0,
        )
        text = StringIO()
        figure.savefig(
            text,
            format="svg",
            metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")),
        )
    notes = {f"line-{n}": [p.note for p in line.points] for n, line in enumerate(series)}
    return _finished(text.getvalue(), identity, f"{y_label} over {x_label}", notes)


def _short(name: str) -> str:
    return name if len(name) <= _NAME_CHARS else name[: _NAME_CHARS - 1] + "…"


def _finished(text: str, identity: str, title: str, notes: Mapping[str, Sequence[str]]) -> str:
    """Give Matplotlib's SVG a title, notes at the points of its lines, CSS, and ids of its own.

    `notes` holds the notes of each line by the line's id, in the order of the points.
    """
    document = minidom.parseString(text)  # noqa: S318  Matplotlib wrote it
    svg = document.documentElement
    assert svg is not None
    for group in svg.getElementsByTagName("g"):
        marks = group.getElementsByTagName("use")
        for mark, note in zip(marks, notes.get(group.getAttribute("id"), ()), strict=False):
            said = mark.appendChild(document.createElement("title"))
            said.appendChild(document.createTextNode(note))
    for element in svg.getElementsByTagName("*"):
        for name, before in (("id", ""), ("xlink:href", "#"), ("clip-path", "url(#")):
            if value := element.getAttribute(name):
                element.setAttribute(name, f"{before}{identity}-{value.removeprefix(before)}")
    (css,) = svg.getElementsByTagName("style")
    css.replaceChild(document.createTextNode(_style(_ON_DARK)), css.childNodes[0])
    for name, value in (("class", "chart"), ("role", "img"), ("aria-label", title)):
        svg.setAttribute(name, value)
    return svg.toxml()
