"""A champion of other data, in a real MLflow: where its checkpoint is, and how it is compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gan_train import recipes
from gan_train.errors import UserError
from gan_train.files.atomic import write_json
from gan_train.runs.integrity import REPORTED
from pipelines.registry import champions, listed, versions
from pipelines.registry.promotion import BLOCKS_TAG, START_TAG
from pipelines.registry.tracking import connect
from tests.pipelines.registry_runs import METRIC, Run, config, index, protocol

pytestmark = pytest.mark.slow


def registered(run: Run, score: float, seed: int) -> versions.Registration:
    run.checkpoint(1000, score, seed=seed)
    run.end(1000)
    return versions.register_best(run.config, run.folder, run.index, {})


def test_a_champion_of_other_data(workspace: Path) -> None:
    settings = config(workspace)
    assert champions.trained_on(settings) == {}
    first = registered(Run(settings, index(), "train/night-1"), 40.0, seed=1)
    assert first.appointed
    folder = workspace / "train/night-1/checkpoints/000000001000"
    assert champions.checkpoint_of(settings, 1) == folder
    with pytest.raises(UserError, match="does not answer"):
        champions.checkpoint_of(settings, 9)

    # Other data, and no score of the champion on them: nobody can say which is better
    second = registered(Run(settings, index("grown"), "train/night-2"), 1.0, seed=2)
    assert second.alias == "challenger" and not second.appointed
    assert "not comparable" in second.reason
    with pytest.raises(UserError, match="cannot be compared"):
        versions.promote(settings, 2)

    # Scored anew, the champion is compared by its new score, and keeps the old one
    scored = {"scores": {METRIC: 45.0}, "protocol": protocol(index("more"))}
    champions.record_score(settings, 1, scored)
    third = registered(Run(settings, index("more"), "train/night-3"), 43.0, seed=3)
    assert (third.alias, third.appointed) == ("champion", True)
    assert third.reason == f"{METRIC} 43 is better than 45 of champion version 1"
    found = champions.trained_on(settings)
    assert found == {index(salt).content_hash: n for n, salt in enumerate(["", "grown", "more"], 1)}
    assert versions.promote(settings, 1, force=True).score == 40.0
    again = versions.promote(settings, 3)
    assert again.appointed and again.reason == "promoted by hand over version 1"

    # What was registered is no longer there
    weights = folder / "generator.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    assert champions.checkpoint_of(settings, 1) is None
    weights.unlink()
    assert champions.checkpoint_of(settings, 1) is None


def scored_anew(value: float, error: float = 0.5) -> dict[str, Any]:
    """Scores on latents that did not choose the checkpoint."""
    how = protocol(index()) | {"latents": 1}
    blocks = [value, 2 * value, -3 * value]  # too few to tell what two samples share
    return {"scores": {METRIC: value, f"{METRIC}_se": error}, "protocol": how, "blocks": blocks}


def test_the_score_on_fresh_latents_is_registered_and_ties_keep_the_champion(
    workspace: Path,
) -> None:
    settings = config(workspace)

    def trained(seed: int, chosen: float, reported: float) -> versions.Registration:
        own = recipes.change(settings, {"seed": seed})
        run = Run(own, index(), f"train/seed-{seed}")
        write_json(run.checkpoint(1000, chosen, seed=seed) / REPORTED, scored_anew(reported))
        run.end(1000)
        return versions.register_best(own, run.folder, run.index, {})

    first = trained(1, 48.0, 50.0)
    assert (first.score, first.text) == (50.0, "50.0 ± 0.5")
    version = connect(settings).get_model_version("progan-tiny", "1")
    assert version.tags[BLOCKS_TAG] == "[50.0, 100.0, -150.0]"
    assert "chosen by 48, on other latents" in version.description
    assert "| 50.0 ± 0.5 &nbsp;" in version.description

    # the numbers that chose do not count, and too little is known of seeds
    second = trained(2, 10.0, 49.0)
    assert second.alias == "challenger" and "ties with 50.0 ± 0.5" in second.reason
    assert "assumed, 8% of the score" in second.reason and "trainings of each" in second.reason
    third = trained(3, 48.0, 49.5)
    assert "between seeds 0.5, known from 3 trainings" in third.reason
    # by hand, a person may
    assert versions.promote(settings, 2).alias == "champion"
    versions.promote(settings, 1)

    # truly better, and of another configuration, which the hash without the seed tells apart
    longer = recipes.change(settings, {"train.total_kimg": 9})
    run = Run(longer, index(), "train/longer")
    write_json(run.checkpoint(1000, 30.0, seed=9) / REPORTED, scored_anew(30.0))
    run.end(1000)
    best = versions.register_best(longer, run.folder, run.index, {})
    assert best.alias == "champion" and best.reason.startswith(
        f"{METRIC} 30.0 ± 0.5 is better than the mean 49.5 of 3 trainings like champion version 1 "
        "(50.0 ± 0.5), 99.9% sure (between seeds 0.5, known from 3 trainings)"
    )
    rows = {one.number: (one.text, one.seeds) for one in listed.versions(settings)}
    assert rows[1] == ("50.0 ± 0.5", "0.5 (3)") and rows[4] == ("30.0 ± 0.5", "-")

    # a person knows better how far seeds deviate
    sure = recipes.change(settings, {"registry.seed_deviation": 0.0, "seed": 5})
    run = Run(sure, index(), "train/sure")
    write_json(run.checkpoint(1000, 28.0, seed=5) / REPORTED, scored_anew(28.0))
    run.end(1000)
    sixth = versions.register_best(sure, run.folder, run.index, {})
    assert sixth.alias == "champion" and "as given" in sixth.reason


def test_a_champion_that_was_scored_on_other_latents(workspace: Path) -> None:
    """It is of an earlier version of this project."""
    settings = config(workspace)
    fresh = scored_anew(50.0)["protocol"]
    assert champions.on_other_latents(settings, fresh) is None
    registered(Run(settings, index(), "train/old"), 40.0, seed=1)
    assert champions.on_other_latents(settings, fresh) == 1
    assert champions.on_other_latents(settings, protocol(index())) is None
    assert champions.on_other_latents(settings, fresh | {"images": 9}) is None
    champions.record_score(settings, 1, scored_anew(44.0))
    assert champions.on_other_latents(settings, fresh) is None


def test_registering_was_killed_before_there_was_a_champion(workspace: Path) -> None:
    settings = config(workspace)
    first = registered(Run(settings, index(), "train/killed"), 40.0, seed=1)
    connect(settings).delete_registered_model_alias(first.model, "champion")
    assert champions.on_other_latents(settings, scored_anew(50.0)["protocol"]) is None


def test_seeds_move_a_training_that_goes_on_from_networks_less(workspace: Path) -> None:
    settings = config(workspace)

    def trained(score: float, **changes: object) -> versions.Registration:
        own = recipes.change(settings, {name.replace("__", "."): v for name, v in changes.items()})
        run = Run(own, index(), f"train/{score}")
        write_json(run.checkpoint(1000, score, seed=int(score)) / REPORTED, scored_anew(score))
        run.end(1000)
        return versions.register_best(own, run.folder, run.index, {})

    assert trained(50.0).alias == "champion"
    anew = trained(44.0, train__total_kimg=9)
    assert anew.alias == "challenger" and "assumed, 8% of the score" in anew.reason
    onward = trained(43.9, train__total_kimg=9, train__start_from=str(workspace / "networks"))
    assert onward.alias == "champion" and "assumed, 3 times the error" in onward.reason
    tags = connect(settings).get_model_version("progan-tiny", "3").tags
    assert tags[START_TAG] == str(workspace / "networks")
