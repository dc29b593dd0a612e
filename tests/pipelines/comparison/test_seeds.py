"""Recipes that are trained with several seeds: what is planned, recorded and gathered."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gan_train.config import Config
from gan_train.errors import UserError
from pipelines.cli.main import main
from pipelines.comparison import contest, gather
from pipelines.comparison.facts import Picture
from pipelines.comparison.plan import Comparison, planned
from pipelines.registry.fingerprints import config_hash, recipe_hash
from tests.pipelines.comparison.conftest import recipe_like, shard_of, trained


def test_trainings_of_a_recipe_differ_in_their_seed_alone(growing: str, styles: str) -> None:
    several = planned([growing, styles], ["seed=7"], kimg=1, seeds=3)
    wanted = [(name, seed) for seed in (7, 8, 9) for name in ("growing", "styles")]
    assert [(one.config.name, one.config.seed) for one in several.trainings] == wanted
    assert [one.label for one in several.trainings][:3] == [
        *("growing seed 7", "styles seed 7", "growing seed 8"),
    ]
    records = [one.record for one in several.trainings]
    assert records[:3] == ["growing.json", "styles.json", "growing@8.json"]
    assert len(set(records)) == 6
    # the registry takes them for trainings of one configuration
    of_one = [one.config for one in several.trainings if one.config.name == "growing"]
    assert len({recipe_hash(config) for config in of_one}) == 1
    assert len({config_hash(config) for config in of_one}) == 3
    # all are scored on one sequence of latents, which does not depend on the seed
    assert {one.config.evaluate.latents for one in several.trainings} == {1}
    assert {c.evaluate.latents for c in planned([growing, styles], kimg=1).configs} == {0}
    own = planned([growing], ["evaluate.latents=3"], kimg=1, seeds=2)
    assert own.configs[0].evaluate.latents == 3


def test_one_training_of_each_is_what_it_was(growing: str) -> None:
    (only,) = planned([growing], ["seed=7"], kimg=1).trainings
    assert (only.label, only.record, only.config.seed) == ("growing", "growing.json", 7)


def test_more_seeds_add_to_a_comparison(growing: str, tmp_path: Path) -> None:
    two = planned([growing], ["seed=7"], kimg=1, seeds=2)
    three = planned([growing], ["seed=7"], kimg=1, seeds=3)
    assert two.id == three.id != planned([growing], ["seed=7"], kimg=1).id
    two.folder.mkdir(parents=True)
    shards = shard_of(two.configs[0])

    def runs(comparison: Comparison) -> list[str]:
        made = (contest.Contestant(t, None, shards, two.folder) for t in comparison.trainings)
        return [contestant.record.run for contestant in made]

    first = runs(two)
    assert [run.rpartition("-")[2] for run in first] == ["seed7", "seed8"]
    assert runs(three)[:2] == first == runs(two), "also after an interrupt"
    assert len(trained(two.configs[0])) == 3


def test_many_trainings_run_side_by_side_as_there_is_room(growing: str) -> None:
    several = planned([growing], kimg=1, seeds=3)
    assert [several.slots(cpus, 0) for cpus in (1, 2, 100)] == [1, 2, 3]


def test_dry_run_tells_how_many_trainings_there_are(
    growing: str, styles: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["compare", growing, styles, "--minutes", "2", "--seeds", "3", "--dry-run"]
    assert main([*given, "--set", "seed=7"]) == 0
    text = capsys.readouterr().out
    assert "2 recipes, 3 trainings of each, 2 min of training each time" in text
    assert "seeds       7 to 9 for each recipe: 6 trainings" in text
    assert "12 min of training if one follows the other" in text
    unlike = recipe_like(styles, Path(styles).parent, "unlike", seed=4)
    assert main(["compare", growing, unlike, "--minutes", "2", "--seeds", "3", "--dry-run"]) == 0
    assert "each recipe's own, and those that follow: 6 trainings" in capsys.readouterr().out


def test_the_last_seed_must_be_one(growing: str) -> None:
    with pytest.raises(UserError, match=r"growing: .*seed"):
        planned([growing], [f"seed={2**63 - 2}"], kimg=1, seeds=3)


@pytest.mark.parametrize("seeds", ["1.5", "three", "0", "-1"])
def test_seeds_are_counted(growing: str, seeds: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        assert main(["compare", growing, "--kimg", "1", "--seeds", seeds]) == 2
    except SystemExit as ended:  # so argparse ends
        assert ended.code == 2
    assert "--seeds" in capsys.readouterr().err


def test_of_each_recipe_the_first_training_that_is_done_has_samples(
    growing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = Picture(png="", width=1, height=1, text="samples")
    monkeypatch.setattr(gather, "_picture", lambda *_: picture)
    comparison = planned([growing], ["seed=7"], kimg=1, seeds=3)
    shards = shard_of(comparison.configs[0])
    comparison.folder.mkdir(parents=True)
    three = [
        contest.Contestant(one, None, shards, comparison.folder) for one in comparison.trainings
    ]
    drawn = {entry.seed: entry.picture for entry in gather.entries(three)}
    assert drawn == {7: picture, 8: None, 9: None}
    for contestant in three[1:]:
        contestant.keep(done=True)
    drawn = {entry.seed: entry.picture for entry in gather.entries(three)}
    assert drawn == {7: None, 8: picture, 9: None}


def test_path_lengths_of_all_trainings_are_of_the_same_paths(
    growing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Config] = []

    def evaluate(config: Config, *_: Any) -> dict[str, Any]:
        asked.append(config)
        return {"scores": {}}

    monkeypatch.setattr(contest.training, "evaluate", evaluate)
    monkeypatch.setattr(contest, "list_checkpoints", lambda _: [None])
    comparison = planned([growing], ["seed=7"], kimg=1, seeds=3)
    shards = shard_of(comparison.configs[0])
    comparison.folder.mkdir(parents=True)
    for one in comparison.trainings:
        contest.Contestant(one, None, shards, comparison.folder)._path_lengths()
    assert [config.seed for config in asked] == [7, 7, 7]
