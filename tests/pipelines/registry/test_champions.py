"""A champion of other data, in a real MLflow: where its checkpoint is, and how it is compared."""

from __future__ import annotations

from pathlib import Path

import pytest

from gan_train.errors import UserError
from pipelines.registry import champions, versions
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
