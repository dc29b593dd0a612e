"""The report of a comparison: a page that stands alone, tables, charts, and the time they tell."""

from __future__ import annotations

import math
import re
from html.parser import HTMLParser
from itertools import pairwise
from typing import Any
from xml.etree import ElementTree

import pytest

from pipelines.comparison import charts, facts, report, tables
from pipelines.comparison.facts import Entry, Facts, Picture, Scored
from pipelines.comparison.training_time import Stopwatch, training_seconds

FD = "fd_efficientnet_lite0"
VOID = {"meta", "img", "link", "br"}


def entry(name: str, distances: list[float], **changes: Any) -> Entry:
    """A recipe that was scored every 10 kimg, each of which took a minute."""
    checkpoints = tuple(
        Scored(
            kimg=10.0 * n,
            minutes=1.0 * n,
            scores={FD: d, f"{FD}_null": 5.5, "recall_efficientnet_lite0": 0.1 * n},
        )
        for n, d in enumerate(distances, start=1)
    )
    fields: dict[str, Any] = {
        "recipe": name,
        "family": "progan",
        "task": "generate",
        "run": f"{name}-1",
        "workers": 2,
        "batch": 32,
        "generator_parameters": 405_000,
        "other_parameters": 1_200_000,
        "kimg": 10.0 * len(distances),
        "minutes": 1.0 * len(distances),
        "memory_gib": 0.5,
        "checkpoints": checkpoints,
        "protocol": {"images": 2000, "extractor": "efficientnet_lite0"},
        "picture": Picture(png="aGVsbG8=", width=8, height=8, text="48 samples"),
        "settings": f"name: {name}\n",
    }
    return Entry.model_validate(fields | changes)


def about(*entries: Entry, **changes: Any) -> Facts:
    fields: dict[str, Any] = {
        "id": "a-b-12345678",
        "budget": "4 min of training",
        "data": "glyphs.zip: 8,897 images of 32 px",
        "content_hash": "ab" * 32,
        "hardware": "2 CPU cores",
        "finished": "2026-01-31 12:00",
        "counted": ("Time is that of training.",),
        "target": None,
        "entries": entries,
    }
    return Facts.model_validate(fields | changes)


SLOW = entry("slow", [200.0, 90.0])
FAST = entry("fast", [120.0, 60.0], lengths={"ppl_z_end_efficientnet_lite0": 30.0})
BROKEN = entry("broken", [], error="workers=5 <b>do not</b> divide & fit", picture=None)


class Page(HTMLParser):
    """Reads a page: elements that do not close, references, tables as rows of text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self._cell: list[str] | None = None
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self._cell = []

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        if tag in ("td", "th") and self._cell is not None:
            self.rows[-1].append("".join(self._cell))
            self._cell = None

    def handle_data(self, data: str) -> None:
        if self._cell is not None:
            self._cell.append(data)

    def row(self, name: str) -> list[str]:
        """The first row whose head begins with this name."""
        return next(row for row in self.rows if row and row[0].startswith(name))


def test_the_page_is_well_formed_and_stands_alone() -> None:
    text = report.page(about(SLOW, FAST, BROKEN))
    page = Page(text)
    assert page.open == [], "every element is closed, in order"
    assert text.startswith("<!doctype html>")
    outside = {
        value
        for _, attributes in page.tags
        for name, value in attributes.items()
        if name in ("src", "href", "srcset", "action", "data") and value
    }
    assert outside and all(value.startswith("data:image/png;base64,") for value in outside)
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.tags}
    assert not re.findall(r"url\([^#]|@import", text)
    assert "http" not in re.sub(
        r'xmlns(:xlink)?="http://www.w3.org/(2000/svg|1999/xlink)"', "", text
    )
    assert "prefers-color-scheme: dark" in text and "width=device-width" in text


def test_the_ids_of_a_page_are_unique_and_there() -> None:
    page = Page(report.page(about(SLOW, FAST)))
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) > 2 and len(ids) == len(set(ids))
    named = [a.get("xlink:href") or a.get("clip-path") or "" for _, a in page.tags]
    wanted = {name.removeprefix("url(").strip("#)") for name in named if name}
    assert wanted and wanted <= set(ids)


def test_what_cannot_be_seen_is_said() -> None:
    page = Page(report.page(about(SLOW, FAST)))
    pictures = [attributes for tag, attributes in page.tags if tag == "img"]
    assert [picture["alt"] for picture in pictures] == ["48 samples, fast", "48 samples, slow"]
    drawn = [a for tag, a in page.tags if tag == "svg" and a.get("aria-hidden") != "true"]
    assert len(drawn) == 2 and all(a["role"] == "img" and a["aria-label"] for a in drawn)
    heads = [a for tag, a in page.tags if tag == "th"]
    assert heads and all(a.get("scope") in ("col", "row") for a in heads)


def test_every_recipe_has_a_row_best_first_and_failures_say_why() -> None:
    text = report.page(about(SLOW, BROKEN, FAST))
    page = Page(text)
    names = [row[0] for row in page.rows if row[0].endswith("progan")]
    assert names == ["fastprogan", "slowprogan", "brokenprogan"] * 2
    assert page.row("fast") == ["fastprogan", "60", "0.2", "30"]
    assert page.row("slow") == ["slowprogan", "90", "0.2", "–"]
    assert page.row("real images") == ["real images", "5.5", "–", "–"]
    assert page.row("broken")[1] == "Failed: workers=5 <b>do not</b> divide & fit"
    assert "<b>do not</b>" not in text, "errors are escaped"
    assert '<td class="best">60</td>' in text
    assert '<td class="best">0.2</td>' not in text, "equal values are none of them the best"


def test_names_and_settings_are_escaped() -> None:
    evil = "<script>alert(1)</script>&\"'"
    text = report.page(about(entry("a", [1.0], family=evil, settings=evil), budget=evil, data=evil))
    assert "<script>" not in text
    assert "|" not in report.escaped("a|b")
    assert "<script>" not in report.markdown(about(FAST, budget=evil))


def test_the_time_to_a_score_is_that_of_the_first_checkpoint_that_had_it() -> None:
    (section,) = facts.sections(about(SLOW, FAST))
    assert section.target == 90.0, "the worst of the final scores"
    assert (section.reached(FAST), section.reached(SLOW)) == (2.0, 2.0)
    (section,) = facts.sections(about(SLOW, FAST, target=150.0))
    assert (section.reached(FAST), section.reached(SLOW)) == (1.0, 2.0)
    (section,) = facts.sections(about(SLOW, FAST, target=70.0))
    assert section.reached(SLOW) is None
    page = Page(report.page(about(SLOW, FAST, target=70.0)))
    costs = [row for row in page.rows if row[0] == "slowprogan"][1]
    assert costs == [
        *("slowprogan", "20 k", "2.0 min", "167", "405 k", "1.2 M", "0.50 GiB", "2"),
        "not reached",
    ]


def test_other_tasks_stand_in_sections_of_their_own_beside_simple_methods() -> None:
    scores = {
        "perceptual_efficientnet_lite0": 0.2,
        "perceptual_efficientnet_lite0_bicubic": 0.5,
        "psnr_y": 30.0,
        "psnr_y_bicubic": 28.0,
        "psnr_y_Set5": 31.0,
        "psnr_y_bicubic_Set5": 29.0,
    }
    point = Scored(kimg=10, minutes=1, scores=scores)
    small = entry("small", [], task="upscale", checkpoints=(point,), kimg=10, minutes=1)
    text = report.page(about(FAST, small))
    page = Page(text)
    assert text.index("Images from latents") < text.index("Super-resolution")
    assert page.row("small") == ["smallprogan", "0.2", "30", "31"]
    assert page.row("bicubic") == ["bicubic", "0.5", "28", "29"]
    assert [row[0] for row in page.rows].count("real images") == 1
    heads = [row for row in page.rows if row[:2] == ["Recipe", "Perceptual distance"]]
    assert heads == [["Recipe", "Perceptual distance", "PSNR", "PSNR Set5"]]
    assert "small has the Perceptual distance 0.2; bicubic gets 0.5." in text


def test_recipes_without_a_score_to_compare_have_tables_and_no_chart() -> None:
    point = Scored(kimg=1, minutes=1, scores={"pair_distance": 3.0, "pair_distance_real": 4.0})
    page = report.page(about(entry("a", [], checkpoints=(point,))))
    assert "No recipe has a score to compare." in page
    assert "On the way" not in page
    assert Page(page).row("real images") == ["real images", "4"]
    assert Page(report.page(about(BROKEN))).row("broken")[1].startswith("Failed")


def test_a_recipe_without_scores_is_not_the_best() -> None:
    failed = entry("failed", [50.0], error="its loss was not finite")
    unscored = entry("unscored", [])
    (section,) = facts.sections(about(failed, unscored))
    assert report.verdict(section) == "No recipe has a score to compare."
    assert Page(report.page(about(failed, unscored))).row("unscored")[1] == "–"


def test_psnr_decides_where_no_distance_does() -> None:
    psnr = {"psnr_y_Set5": 20.0, "psnr_y": 30.0, "psnr_y_bicubic": 28.0, "ssim_y": 0.9}
    points = [Scored(kimg=1, minutes=1, scores=psnr | more) for more in ({}, {"psnr_y": 25.0})]
    upscale: dict[str, Any] = {"task": "upscale"}
    better, worse = (
        entry(name, [], checkpoints=(point,), **upscale)
        for name, point in zip(("better", "worse"), points, strict=True)
    )
    (section,) = facts.sections(about(worse, better))
    assert section.main is not None and section.main.name == "psnr_y"
    assert [e.recipe for e in section.entries] == ["better", "worse"]
    assert "better has the highest PSNR: 30, before worse 25" in report.verdict(section)
    distance = Scored(kimg=1, minutes=1, scores=psnr | {"perceptual_x": 0.1})
    (section,) = facts.sections(about(entry("a", [], checkpoints=(distance,), **upscale)))
    assert section.main is not None and section.main.name == "perceptual_x"


def test_markdown_and_terminal_tell_the_same() -> None:
    broken = entry("broken", [], error="one | two\nthree")
    text = report.markdown(about(SLOW, FAST, broken))
    assert "fast has the lowest Fréchet distance: 60, before slow 90; real images get 5.5." in text
    assert "| fast | **60** | 0.2 | 30 |" in text
    assert "\n| --- | ---: | ---: | ---: |\n" in text, "which makes it a table"
    assert "**broken failed**: one &#124; two three" in text
    lines = report.text(about(SLOW, FAST)).splitlines()
    assert [line.split()[0] for line in lines[-2:]] == ["fast", "slow"]


def test_facts_survive_the_file() -> None:
    odd = entry("odd", [float("nan"), 3.0])
    kept = Facts.model_validate_json(about(odd, FAST).model_dump_json())
    assert kept.entries[1] == FAST
    assert kept.entries[0].checkpoints[0].scores[FD] != kept.entries[0].checkpoints[0].scores[FD]
    assert "no number" in report.page(kept)


# ---- charts ------------------------------------------------------------------------------------

SVG = "{http://www.w3.org/2000/svg}"


def drawn(section: facts.Section) -> ElementTree.Element:
    svg = facts.chart(section, "minutes of training")
    assert svg is not None
    return ElementTree.fromstring(svg)


def lines(svg: ElementTree.Element) -> list[ElementTree.Element]:
    """The groups of a chart's lines, in order."""
    return [g for g in svg.iter(f"{SVG}g") if "-line-" in g.attrib.get("id", "")]


def places(line: ElementTree.Element) -> list[tuple[float, float]]:
    """Where the marks of a line stand; y grows downwards."""
    return [(float(use.attrib["x"]), float(use.attrib["y"])) for use in line.iter(f"{SVG}use")]


def test_what_errors_do_not_tell_from_the_best_is_best_as_well() -> None:
    def scored(name: str, value: float, error: float) -> Entry:
        point = Scored(kimg=10, minutes=1, scores={"a_first": 1.0, FD: value, f"{FD}_se": error})
        return entry(name, []).model_copy(update={"checkpoints": (point,)})

    def best(*entries: Entry) -> list[str]:
        table = tables.quality(facts.sections(about(*entries))[0])
        place = [head for head, _ in table.heads].index("Fréchet distance")
        assert place == 0, "what decides stands first"
        return [one.recipe for one, cells in table.rows if cells[place].best]

    near, far = scored("near", 51, 0.6), scored("far", 53, 0.6)
    assert best(scored("first", 50, 0.6), near, far) == ["first", "near"]
    assert best(scored("first", 50, 0.1), far) == ["first"]
    assert best(scored("first", 50, math.nan), scored("near", 51, math.nan)) == ["first"]
    assert best(scored("first", 50, 0.6), near) == [], "none is told apart"


def test_a_chart_has_every_point_where_it_belongs() -> None:
    svg = drawn(facts.sections(about(SLOW, FAST))[0])
    assert [title.text for title in svg.iter(f"{SVG}title")] == [
        "fast: Fréchet distance 120 at 10 kimg, 1.0 min",
        "fast: Fréchet distance 60 at 20 kimg, 2.0 min",
        "slow: Fréchet distance 200 at 10 kimg, 1.0 min",
        "slow: Fréchet distance 90 at 20 kimg, 2.0 min",
    ]
    measured = SLOW.checkpoints[0].model_copy(update={"scores": {FD: 54.43, f"{FD}_se": 0.613}})
    told = drawn(facts.sections(about(SLOW.model_copy(update={"checkpoints": (measured,)})))[0])
    assert (
        next(told.iter(f"{SVG}title")).text
        == "slow: Fréchet distance 54.4 ± 0.6 at 10 kimg, 1.0 min"
    )
    fast, slow = map(places, lines(svg))
    for line in (fast, slow):
        assert line[0][0] < line[1][0] and line[0][1] < line[1][1], "later, and lower is below"
    assert fast[0][1] > slow[0][1], "a smaller distance stands lower"
    heights = [line[1][1] - line[0][1] for line in (fast, slow)]
    ratios = math.log(120 / 60), math.log(200 / 90)
    assert heights[0] / heights[1] == pytest.approx(ratios[0] / ratios[1], rel=0.01), "logarithmic"
    texts = [text.text for text in svg.iter(f"{SVG}text")]
    assert {"minutes of training", "5", "200"} <= set(texts)
    assert texts[-3:] == ["slow", "fast", "real images"], "named in the order of their ends"


def test_lines_differ_without_colour() -> None:
    entries = [entry(f"recipe-{n:02}", [90.0, 10.0 + n]) for n in range(14)]
    svg = drawn(facts.sections(about(*entries))[0])
    shapes = {path.attrib.get("id"): path.attrib["d"] for path in svg.iter(f"{SVG}path")}
    looks = []
    for line in lines(svg):
        path, use = next(line.iter(f"{SVG}path")), next(line.iter(f"{SVG}use"))
        dashed = "stroke-dasharray" in path.attrib["style"]
        looks.append((shapes[use.attrib["{http://www.w3.org/1999/xlink}href"][1:]], dashed))
    assert len(looks) == len(set(looks)) == 14
    assert len(charts.MARKS) == len(charts.LIGHT) == len(charts.DARK), "a table shows them all"


def test_many_lines_and_long_names_leave_room_for_the_lines() -> None:
    entries = [entry(f"{'long-' * 20}{n}", [90.0, 10.0 + 0.01 * n]) for n in range(9)]
    svg = drawn(facts.sections(about(*entries))[0])
    ends = [places(line)[-1] for line in lines(svg)]
    assert min(x for x, _ in ends) > charts.WIDTH / 3
    names = [t for t in svg.iter(f"{SVG}text") if (t.text or "").startswith("long-")]
    heights = sorted(float(t.attrib["y"]) for t in names)
    assert len(heights) == 9 and heights[0] > 0 and heights[-1] < charts.HEIGHT
    assert all(b - a >= 15 for a, b in pairwise(heights)), "names do not overlap"
    assert all(len(t.text or "") < 30 for t in names)


def test_names_are_shown_as_they_are() -> None:
    odd = '_a$b$ <i> & "c"'
    svg = drawn(facts.sections(about(entry(odd, [9.0, 8.0])))[0])
    assert odd in [text.text for text in svg.iter(f"{SVG}text")]


def test_the_same_facts_give_the_same_chart_whatever_a_reader_has_set(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import matplotlib

    (section,) = facts.sections(about(SLOW, FAST))
    first = facts.chart(section, "minutes of training")
    monkeypatch.setitem(matplotlib.rcParams, "lines.linewidth", 17.0)
    monkeypatch.setitem(matplotlib.rcParams, "font.weight", "bold")
    assert facts.chart(section, "minutes of training") == first
    assert matplotlib.rcParams["lines.linewidth"] == 17.0, "and changes nothing of it"


def test_every_colour_of_a_chart_has_another_on_dark_screens() -> None:
    svg = drawn(facts.sections(about(SLOW, FAST))[0])
    (css,) = svg.iter(f"{SVG}style")
    rules = dict(re.findall(r"\[style\*='(?:fill|stroke): (#\w+)'\]{\w+:(#\w+)", css.text or ""))
    styles = " ".join(e.attrib.get("style", "") for e in svg.iter())
    used = set(re.findall(r"(?:fill|stroke): (#\w+)", styles))
    assert used and used <= set(rules)
    assert all(rules[colour] != colour for colour in used)


@pytest.mark.parametrize(
    ("values", "low", "high", "logarithmic"),
    [
        ([3.0, 9.0], 0, 10, False),
        ([5.5, 200.0], 5, 200, True),
        ([0.0, 90.0], 0, 100, False),
        ([-1.0, 8.0], -2, 8, False),
        ([0.0], 0, 1, False),
        ([0.021, 0.7], 0.02, 1, True),
        ([0.3, 0.6], 0, 0.6, False),
        ([20.0, 100.0], 20, 100, True),
    ],
)
def test_axes_hold_their_values(
    values: list[float], low: float, high: float, logarithmic: bool
) -> None:
    axis = charts.axis(values, True)
    assert (axis.ticks[0], axis.ticks[-1]) == pytest.approx((low, high))
    assert axis.logarithmic == logarithmic
    assert 2 <= len(axis.ticks) <= 8


# ---- training time -----------------------------------------------------------------------------


def tick(nimg: int, speed: float) -> dict[str, Any]:
    return {"kind": "metrics", "nimg": nimg, "values": {"images_per_second": speed}}


def test_training_time_is_images_by_speed_between_ticks() -> None:
    events = [tick(1000, 100.0), {"kind": "checkpoint", "nimg": 1000}, tick(2000, 50.0)]
    assert training_seconds(events, 2000) == 1000 / 100 + 1000 / 50
    assert training_seconds(events, 1000) == 10.0
    assert training_seconds(events, 2500) == 30.0 + 500 / 50, "the rest at the last speed"
    assert training_seconds([], 500) == 0.0


def test_the_stopwatch_stands_still_while_a_checkpoint_is_scored() -> None:
    now = [0.0]
    watch = Stopwatch([2000], lambda: now[0])
    now[0] = 40.0
    assert watch.seconds() == 0.0, "start-up does not count"
    watch.take(tick(1000, 100.0))
    now[0] += 3.0
    assert watch.seconds() == 10.0 + 3.0, "it goes on between two ticks"
    watch.take(tick(2000, 100.0))
    now[0] += 60.0
    assert watch.seconds() == 20.0, "scoring"
    watch.take({"kind": "checkpoint", "nimg": 2000})
    now[0] += 2.0
    assert watch.seconds() == 22.0
    watch.take({"kind": "end", "nimg": 2000})
    now[0] += 100.0
    assert watch.seconds() == 20.0
    resumed = Stopwatch([2000], lambda: now[0])
    resumed.take(tick(1000, 100.0), live=False)
    now[0] += 100.0
    assert resumed.seconds() == 10.0 and resumed.nimg == 1000
