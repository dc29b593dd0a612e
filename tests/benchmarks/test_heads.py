"""What a recipe costs stands in its head, in one form, and can be measured again."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from gan_train import recipes
from gan_train.bench import heads
from gan_train.bench.rehearsal import Rehearsed
from tests.training import tiny_config

FORM = re.compile(
    r"# Costs (?:(about )?[\d,.]+ s per kimg on .+|per kimg: not measured on a CPU); .*GPU.*\n"
)


def test_every_recipe_tells_its_cost_in_its_head() -> None:
    for path in recipes.SHIPPED.glob("*.yaml"):
        head, _, _ = path.read_text(encoding="utf-8").partition("\nname: ")
        costs = [line for line in head.splitlines(keepends=True) if line.startswith("# Costs ")]
        assert len(costs) == 1 and FORM.fullmatch(costs[0].rstrip("\n") + "\n"), path.name


def test_a_new_measurement_replaces_the_line(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("# A recipe.\nname: tiny\nseed: 1  # name: no\n", encoding="utf-8")
    for found in ((1234.5, True), (0.0123, False)):
        heads.write(path, heads.line(found, "a core"))
    assert path.read_text(encoding="utf-8") == (
        "# A recipe.\n"
        "# Costs about 0.012 s per kimg on a core (partly by counted operations); "
        "no GPU has been measured.\n"
        "name: tiny\nseed: 1  # name: no\n"
    )
    assert heads.line((1234.5, True), "a core").startswith("# Costs 1,200 s per kimg on a core;")
    assert FORM.fullmatch(heads.line(None, "a core"))


def test_the_cost_is_the_mean_over_the_schedule(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(tmp_path, tmp_path, train__total_kimg=0.16)  # 64, 64 and 32 images
    each = {"4": 1.0, "8-fade": 2.0, "8": 4.0}
    monkeypatch.setattr(heads, "rehearse", lambda *_, **__: Rehearsed(cpu_seconds=each))
    assert heads.cost(config) == (1000 * (64 * 1 + 64 * 2 + 32 * 4) / 160, True)
    monkeypatch.setattr(heads, "rehearse", lambda *_, **__: Rehearsed(cpu_seconds={"4": 1.0}))
    monkeypatch.setattr(heads, "estimate", lambda *_: {"8-fade": 2.0, "8": 4.0})
    assert heads.cost(config) == (2000, False)
    monkeypatch.setattr(heads, "estimate", lambda *_: {})
    assert heads.cost(config) is None
