"""The report of recipes that were trained with several seeds: means, what tells them apart, and
what the page, the tables and the charts make of it."""

from __future__ import annotations

import html
import math
import re
from typing import Any

import pytest
from scipy import stats

from pipelines.comparison import facts, report, tables
from pipelines.comparison.facts import Entry, Facts, Scored, Section
from pipelines.comparison.verdict import grounds, verdict
from tests.pipelines.comparison.test_report import FAST, FD, SLOW, Page, about, drawn, entry, lines

GOOD, NEAR, BAD = (50.0, 53.0, 47.0), (52.0, 58.0, 55.0), (90.0, 96.0, 93.0)


def trained(name: str, distances: tuple[float | None, ...], **changes: Any) -> list[Entry]:
    """A recipe's trainings from seed 7 on, each with its final distance; None for one that
    failed."""
    found = []
    for seed, distance in enumerate(distances, start=7):
        one = {"seed": seed, "run": f"{name}-20260131-120000-seed{seed}"}
        if distance is None:
            one |= {"error": f"not finite <b>at</b> seed {seed}"}
        found.append(entry(name, [2 * (distance or 1), distance or 1], **one | changes))
    return found


def mixed(*recipes: list[Entry]) -> Facts:
    """The facts of a comparison, in the order of training: the first seed of each recipe first."""
    return about(*(one for turn in zip(*recipes, strict=True) for one in turn))


def section(*recipes: list[Entry]) -> Section:
    (found,) = facts.sections(mixed(*recipes))
    return found


def best(of: Section, head: str = "Fréchet distance") -> list[str]:
    table = tables.quality(of)
    place = [name for name, _ in table.heads].index(head)
    return [recipe.recipe for recipe, cells in table.rows if cells[place].best]


def test_a_row_tells_the_mean_and_its_error_over_trainings() -> None:
    found = section(trained("bad", BAD), trained("good", GOOD))
    table = tables.quality(found)
    assert [head for head, _ in table.heads][:2] == ["Trainings", "Fréchet distance"]
    rows = {recipe.recipe: [cell.text for cell in cells] for recipe, cells in table.rows}
    assert list(rows) == ["good", "bad"], "the best mean first"
    assert stats.sem(GOOD) == pytest.approx(math.sqrt(3))
    assert rows["good"][:2] == ["3", "50.0 ± 1.7"] and rows["bad"][:2] == ["3", "93.0 ± 1.7"]
    assert table.references[0] == ("real images", (tables.NONE, tables.Cell("5.5"), tables.NONE))
    assert "standard error of the mean over trainings" in table.heads[0][1]
    assert "Student's t-test" in table.bold


def test_the_best_and_what_chance_does_not_tell_from_it_are_bold() -> None:
    """Of good and near, Student's t is 5 / sqrt(6) = 2.04, below 2.13, that of four degrees of
    freedom at 95%."""
    assert best(section(trained("good", GOOD), trained("near", NEAR), trained("bad", BAD))) == [
        *("good", "near"),
    ]
    assert best(section(trained("good", GOOD), trained("near", NEAR))) == [], "none is told apart"
    assert best(section(trained("good", GOOD), trained("bad", BAD))) == ["good"]
    farther = tuple(value + 0.3 for value in NEAR)
    assert best(section(trained("good", GOOD), trained("near", farther))) == ["good"]


def test_a_third_recipe_does_not_hide_what_tells_two_apart() -> None:
    wild = trained("wild", (60.0, 300.0, 540.0))
    assert best(section(trained("good", GOOD), trained("bad", BAD), wild)) == ["good", "wild"]
    assert "good is better than bad, 99.9% sure" in verdict(
        section(trained("good", GOOD), trained("bad", BAD), wild)
    )


def test_higher_is_better_where_it_is() -> None:
    def recalls(name: str, values: tuple[float, ...]) -> list[Entry]:
        def point(value: float) -> Scored:
            return Scored(kimg=1, minutes=1, scores={FD: 50.0, "recall_efficientnet_lite0": value})

        made = trained(name, tuple(50.0 for _ in values))
        pairs = zip(made, values, strict=True)
        return [one.model_copy(update={"checkpoints": (point(value),)}) for one, value in pairs]

    found = section(recalls("low", (0.1, 0.12)), recalls("high", (0.4, 0.42)))
    assert best(found, "Recall") == ["high"]


def test_two_seeds_each_rarely_tell_recipes_apart() -> None:
    found = section(trained("a", (50.0, 54.0)), trained("b", (56.0, 60.0)))
    assert best(found) == []
    assert verdict(found) == (
        "a and b tie. Fréchet distance: a 52 ± 2 (2 trainings), b 58 ± 2 (2 trainings); "
        "real images get 5.5."
    )
    sure = 1 - stats.ttest_ind([56, 60], [50, 54], alternative="greater").pvalue
    assert grounds(found) == [
        f"By Fréchet distance, a and b tie: a is better with a probability of {100 * sure:.0f}%, "
        "where 95% are needed (between seeds 2.83, known from 4 trainings); 3 trainings of each "
        "would decide."
    ]


def test_the_answer_comes_first() -> None:
    found = section(trained("bad", BAD), trained("good", GOOD))
    assert verdict(found).startswith("good is better than bad, 99.9% sure. Fréchet distance: good")
    (said,) = grounds(found)
    assert said == (
        "By Fréchet distance, good is better than bad, 99.9% sure (between seeds 3, known from 6 "
        "trainings)."
    )
    three = section(trained("good", GOOD), trained("bad", BAD), trained("near", NEAR))
    assert verdict(three).startswith("good and near tie; good is better than bad, 99.9% sure. ")
    assert len(grounds(three)) == 2
    worse = trained("worse", (190.0, 196.0, 193.0))
    all_told = section(trained("good", GOOD), trained("bad", BAD), worse)
    assert verdict(all_told).startswith("good is better than bad and worse, at least 99.9% sure. ")
    alone = section(trained("good", GOOD))
    assert verdict(alone).startswith("good has the Fréchet distance 50.0 ± 1.7 (3 trainings); real")
    assert grounds(alone) == []


def test_a_training_that_failed_does_not_count() -> None:
    found = section(trained("a", (50.0, None, 54.0)), trained("bad", BAD))
    rows = {recipe.recipe: cells for recipe, cells in tables.quality(found).rows}
    assert [cell.text for cell in rows["a"]][:2] == ["2 of 3", "52 ± 2"]
    assert "a 52 ± 2 (2 trainings)" in verdict(found)
    assert "known from 5 trainings" in grounds(found)[0]
    page = Page(text := report.page(mixed(trained("a", (50.0, None, 54.0)), trained("bad", BAD))))
    assert page.row("a seed 8")[1] == "Failed: not finite <b>at</b> seed 8"
    assert "<b>at</b>" not in text, "errors are escaped"
    assert "<b>a seed 8</b> failed, and does not count:" in text
    told = report.markdown(mixed(trained("a", (50.0, None, 54.0)), trained("bad", BAD)))
    assert "| a | 2 of 3 | **52 ± 2** |" in told and "**a seed 8 failed**: not finite" in told


def test_a_recipe_of_which_all_trainings_failed_says_why() -> None:
    found = mixed(trained("lost", (None, None)), trained("a", (50.0, 54.0)))
    page = Page(report.page(found))
    assert page.row("lost")[1] == "Failed: not finite <b>at</b> seed 7"
    assert [r.recipe for r in facts.sections(found)[0].recipes] == ["a", "lost"]
    assert "a has the Fréchet distance 52 ± 2 (2 trainings)" in report.text(found)


def test_what_too_few_trainings_cannot_tell_is_no_better() -> None:
    found = section(trained("a", (50.0, None)), trained("b", (90.0, 94.0)))
    assert best(found) == []
    assert verdict(found).startswith("a and b tie. Fréchet distance: a 50 (1 training), b 92 ± 2")
    assert "too few of their trainings ended" in grounds(found)[0]


def test_a_mean_with_what_is_no_number_is_none() -> None:
    found = section(trained("odd", (3.0, math.nan)), trained("a", (50.0, 54.0)))
    assert [recipe.recipe for recipe in found.recipes] == ["a", "odd"]
    assert best(found) == ["a"]
    assert "odd no number (2 trainings)" in verdict(found) and grounds(found) == []


def test_what_it_took_is_a_mean() -> None:
    quick, slow = trained("a", (50.0, 54.0))
    slow = slow.model_copy(update={"minutes": 4.0, "memory_gib": 0.7})
    found = section([quick, slow], trained("b", (90.0, None)))
    rows = {recipe.recipe: [c.text for c in cells] for recipe, cells in tables.cost(found).rows}
    assert rows["a"][:3] == ["20 k", "3.0 min", "125"], "2 and 4 minutes; 167 and 83 images/s"
    assert rows["a"][5] == "0.70 GiB", "the most of all"
    assert rows["a"][-1] == "2.0 min", "until a distance of 90: the worst of those that ended"
    (nearer,) = facts.sections(about(*trained("a", (50.0, 80.0)), target=60.0))
    assert tables.cost(nearer).rows[0][1][-1].text == "reached by 1 of 2"


def test_each_training_is_one_click_further() -> None:
    text = report.page(mixed(trained("good", GOOD), trained("near", NEAR)))
    page = Page(text)
    assert page.open == []
    names = [row[0] for row in page.rows if row[0].endswith("progan")]
    each = [f"{name} seed {seed}progan" for name in ("good", "near") for seed in (7, 8, 9)]
    assert names == 2 * ["goodprogan", "nearprogan", *each], "of scores, and of what it took"
    assert page.row("good")[:3] == ["goodprogan", "3", "50.0 ± 1.7"]
    assert page.row("good seed 9")[:2] == ["good seed 9progan", "47"]
    folded = re.findall(r"<details><summary>Each training</summary>(.*?)</details>", text, re.S)
    assert len(folded) == 2 and all("good seed 8" in one for one in folded)
    assert "<h1>good and near</h1>" in text
    answer = verdict(section(trained("good", GOOD), trained("near", NEAR)))
    assert answer in html.unescape(text).replace("\u00a0", " ")


def test_all_trainings_of_a_recipe_have_its_mark() -> None:
    text = report.page(mixed(trained("good", GOOD), trained("near", NEAR)))
    marks = re.findall(r'mark mark-(\d)"></span>(good|near)', text)
    assert {(number, name) for number, name in marks} == {("0", "good"), ("1", "near")}
    assert len(marks) == 16


def test_lines_of_a_recipe_look_alike_and_share_an_entry_of_the_legend() -> None:
    svg = drawn(section(trained("good", GOOD), trained("near", NEAR)))
    colours = []
    for line in lines(svg):
        styles = " ".join(part.attrib.get("style", "") for part in line.iter())
        (colour,) = set(re.findall(r"stroke: (#\w+)", styles))
        colours.append(colour)
    assert len(colours) == 6 and len(set(colours)) == 2
    assert len(set(colours[:3])) == len(set(colours[3:])) == 1
    texts = [t.text for t in svg.iter("{http://www.w3.org/2000/svg}text")]
    assert [t for t in texts if t in ("good", "near")] == ["near", "good"], "near ends higher"
    notes = [t.text or "" for t in svg.iter("{http://www.w3.org/2000/svg}title")]
    assert "good seed 8: Fréchet distance 53 at 20 kimg, 2.0 min" in notes


def test_one_grid_of_a_recipe_says_which_training_drew_it() -> None:
    first, second = trained("good", (50.0, 53.0))
    text = report.page(about(first, second.model_copy(update={"picture": None})))
    page = Page(text)
    assert [a["alt"] for tag, a in page.tags if tag == "img"] == ["48 samples, good seed 7"]
    assert "<b>good</b>, trained with seed 7 · 48 samples" in text


def test_what_is_noted_of_all_trainings_is_said_once() -> None:
    same = {"notes": ("cut at 20 kimg",)}
    one, two = trained("good", (50.0, 53.0), **same)
    two = two.model_copy(update={"notes": ("cut at 20 kimg", "slow <i>")})
    (found,) = facts.sections(about(one, two))
    assert report.remarks(found) == [("good", "cut at 20 kimg"), ("good seed 8", "slow <i>")]
    assert "<b>good seed 8</b>: slow &lt;i&gt;" in report.page(about(one, two))


def test_settings_are_shown_once_a_recipe_with_all_runs() -> None:
    text = report.page(mixed(trained("good", (50.0, 53.0)), trained("near", (52.0, 58.0))))
    assert text.count("name: good") == 1
    assert "good · runs good-20260131-120000-seed7, good-20260131-120000-seed8" in text
    assert "differ in their seed alone" in text and "Budget of each training" in text


def test_names_are_escaped_here_too() -> None:
    evil = "<script>alert(1)</script>|&\"'"
    found = mixed(trained(evil, GOOD), trained("near", NEAR))
    assert "<script>" not in report.page(found) and "<script>" not in report.markdown(found)
    rows = [row for row in report.markdown(found).splitlines() if "alert" in row and row[0] == "|"]
    assert [row.count("|") for row in rows] == [5, 10], "no name ends a cell"


def test_one_training_of_each_does_not_tell_recipes_apart() -> None:
    said = "--seeds 3 trains each recipe three times"
    both, alone = about(SLOW, FAST), about(FAST)
    for told in (report.page, report.markdown, report.text):
        assert said in told(both) and said not in told(alone), "nothing is to be told apart"
    assert report.page(both).count(said) == 1
    assert said not in report.page(mixed(trained("good", GOOD), trained("near", NEAR)))
