"""`--dry-run` tells what a run costs, and `--minutes` fits its schedule to a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gan_train import recipes
from gan_train.bench.rehearsal import Rehearsed
from gan_train.runs import run_folder
from pipelines.cli.main import main
from pipelines.flows import price
from tests.training import tiny_config

SECONDS = 0.02  # for an image


@pytest.fixture(autouse=True)
def known_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The speed of a machine that is always the same."""

    def rehearse(*_: Any) -> Rehearsed:
        seconds = dict.fromkeys(("4", "8-fade", "8"), SECONDS)
        return Rehearsed(seconds, scoring=0.01, memory_gib=0.5)

    monkeypatch.setattr(price, "rehearse", rehearse)


@pytest.fixture
def recipe(tiny_source: Path, tmp_path: Path) -> str:
    """A recipe of twelve steps."""
    config = tiny_config(tiny_source, tmp_path / "workspace")
    path = tmp_path / "tiny.yaml"
    path.write_text(recipes.dump(config), encoding="utf-8")
    return str(path)


def test_help_teaches_both(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["run", "--help"])
    text = capsys.readouterr().out
    assert "gan-train run demo --dry-run" in text and "gan-train run demo --minutes 10" in text
    assert "config.yaml has the new numbers" in text


def test_dry_run_tells_time_and_memory(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", recipe, "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert "2 scorings 5 s" in text, "(16 + 16 + 24) images and the measures themselves"
    assert f"start and end {price.START_S + price.END_S:.0f} s" in text
    assert "memory      1 GiB a worker, at the peak" in text
    rows = [line.split() for line in text.splitlines() if line.startswith(("4 ", "8"))]
    kept = 1 - price.LOST_WITH_A_CORE_TO_SPARE, 1 - price.LOST_ON_ALL_CORES
    assert {float(row[5]) for row in rows} <= {float(f"{k / SECONDS:.3g}") for k in kept}


def test_the_plan_of_a_fitted_run(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", recipe, "--minutes", "60", "--dry-run"]) == 0
    said = capsys.readouterr()
    assert "57.0 min expected" in said.out, "a twentieth of the time is kept in reserve"
    assert "the schedule is fitted to 60 min: family.fade_kimg 0.064 -> " in said.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--minutes", "0.1"], "--minutes 0.1: too short for tiny; allowed: "),
        (["--minutes", "9", "--resume", "x"], "a run that goes on keeps its schedule"),
    ],
)
@pytest.mark.parametrize("command", ["run", "train"])
def test_a_time_that_is_not_possible(
    command: str,
    arguments: list[str],
    message: str,
    recipe: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main([command, recipe, *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_fitted_run_ends_with_its_schedule_and_goes_on_with_it(
    recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", recipe, "--plain", "--minutes", "0.5"]) == 0
    (run_dir,) = (tmp_path / "workspace" / "train").iterdir()
    config = run_folder.configuration(run_dir)
    family = config.family.model_dump()
    aim = price.AIM * 30 - price.PLAIN_S
    assert config.train.fitted_minutes == 0.5
    assert family["fade_kimg"] == family["stable_kimg"] > 0.064
    events = run_folder.read_events(run_dir)
    reached = events[-1]["nimg"]
    assert run_folder.finished(events)
    assert reached - 16 < 3000 * family["fade_kimg"] <= reached
    assert reached * SECONDS < aim

    # the recipe, which has other lengths, resumes the run; keys may change as ever
    capsys.readouterr()
    resume = ["train", recipe, "--plain", "--resume", run_dir.name]
    assert main(resume) == 0
    longer = f"train.total_kimg={reached / 1000 + 0.064}"
    assert main([*resume, "--set", longer]) == 0
    events = run_folder.read_events(run_dir)
    assert run_folder.finished(events) and events[-1]["nimg"] == reached + 64
    assert main([*resume, "--set", "family.lr=0.5"]) == 2
    said = capsys.readouterr().err
    assert "family.lr: 0.001 -> 0.5." in said and "_kimg" not in said
