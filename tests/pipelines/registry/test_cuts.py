"""A past that training abandoned does not stay in MLflow as if it were the run's own."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gan_train.config import Config
from gan_train.runs.events import read_with_offsets
from pipelines.registry import versions
from pipelines.registry.shipping import ship
from pipelines.registry.spool import Cursor, look
from pipelines.registry.tracking import connect
from tests.pipelines.registry_runs import (
    WRITERS,
    Killed,
    Run,
    config,
    image_files,
    index,
    kill_after,
    logged_metrics,
    models_of,
    written_metrics,
)


def events_to_come(folder: Path, cursor: Cursor) -> list[tuple[str, int]]:
    return [(event["kind"], event["nimg"]) for event, _ in look(folder, cursor).events]


def test_a_cut_parts_what_was_delivered_from_what_was_not(tmp_path: Path) -> None:
    run = Run(config(tmp_path), index())
    for nimg in (1000, 2000, 3000):
        run.metrics(nimg)
    ends = [behind for _, behind in read_with_offsets(run.folder)]
    run.metrics(2000, **{"loss/D": 7.0})  # another past from here on
    run.metrics(3000, **{"loss/D": 8.0})
    fresh = Cursor("key", "sqlite://")
    present = [("metrics", 1000), ("metrics", 2000), ("metrics", 3000)]
    assert events_to_come(tmp_path / "run", fresh) == present

    delivered = {n: replace(fresh, run_id="r", offset=ends[n - 1]) for n in (1, 2, 3)}
    assert look(run.folder, delivered[1]).abandoned_from is None
    assert events_to_come(run.folder, delivered[1]) == present[1:]
    assert look(run.folder, delivered[2]).abandoned_from == 2000
    assert look(run.folder, delivered[3]).abandoned_from == 2000
    # what was being sent may have arrived
    sending = replace(delivered[1], sending=ends[1])
    assert look(run.folder, sending).abandoned_from == 2000
    # events that were left out because of this cut are not taken for delivered ones
    end = look(run.folder, delivered[1]).end
    heeded = replace(delivered[1], heeded=end)
    after = [behind for _, behind in read_with_offsets(run.folder)]
    for place in after[3:]:
        passed = replace(heeded, offset=place, sending=place)
        assert look(run.folder, passed).abandoned_from is None
    # a later cut counts anew
    run.metrics(3000, **{"loss/D": 9.0})
    assert look(run.folder, replace(heeded, offset=end, sending=end)).abandoned_from == 3000
    assert look(run.folder, replace(heeded, offset=after[4])).abandoned_from is None


# ---- a real MLflow ------------------------------------------------------------------------------


def run_ids(settings: Config, client: Any) -> set[str]:
    experiment = client.get_experiment_by_name(settings.registry.experiment)
    return {run.info.run_id for run in client.search_runs([experiment.experiment_id])}


def cursor_of(run: Run) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run.folder / "mlflow.json").read_text())
    return found


def first_past(settings: Config, name: str) -> Run:
    run = Run(settings, index(), name)
    for nimg, score in ((1000, 50.0), (2000, 20.0), (3000, 30.0)):
        run.metrics(nimg)
        run.image(nimg)
        run.checkpoint(nimg, score)
    return run


def another_past(run: Run) -> None:
    """The run resumed at 1,000 images, and not to the bit."""
    for nimg, score in ((2000, 40.0), (3000, 45.0)):
        run.metrics(nimg, **{"loss/D": 7.0, "loss/G": 8.0})
        run.image(nimg)
        run.checkpoint(nimg, score, seed=1)
    run.end(3000)


@pytest.mark.slow
def test_a_past_that_was_abandoned_after_it_was_delivered(workspace: Path) -> None:
    """Its MLflow run is closed and marked; a new one holds the present alone, from its beginning,
    and the best checkpoint is the present's."""
    settings = config(workspace, model="cut")
    run = first_past(settings, "cut")
    assert ship(settings, run.folder, run.index, {})
    old, old_key = (cursor_of(run)[key] for key in ("run_id", "key"))
    client = connect(settings)
    before = logged_metrics(client, old)

    another_past(run)
    done = versions.register_best(settings, run.folder, run.index, {})
    new = cursor_of(run)["run_id"]
    assert (done.run_id, done.score) == (new, 40.0)
    assert new != old and cursor_of(run)["key"] != old_key

    closed, present = client.get_run(old), client.get_run(new)
    assert closed.info.status == "KILLED"
    assert closed.data.tags["gan_train.abandoned"] == "from 2000 images on"
    assert closed.data.tags["gan_train.followed_by"] == new
    assert present.data.tags["gan_train.follows"] == old
    assert present.info.status == "FINISHED"
    assert logged_metrics(client, old) == before
    assert logged_metrics(client, new) == written_metrics(run)
    assert not {20.0, 30.0} & {value for _, _, value in logged_metrics(client, new)}
    assert len(image_files(client, new)) == 3 * 2
    names = [f"checkpoint-{nimg:012d}" for nimg in (1000, 2000, 3000)]
    assert models_of(client, new) == [(name, "READY") for name in names]

    # and again: nothing new
    assert ship(settings, run.folder, run.index, {})
    assert cursor_of(run)["run_id"] == new and run_ids(settings, client) == {old, new}
    assert logged_metrics(client, new) == written_metrics(run)


@pytest.mark.slow
def test_a_past_that_was_abandoned_before_it_was_delivered(workspace: Path) -> None:
    """MLflow never hears of it: the run goes on."""
    settings = config(workspace)
    run = Run(settings, index())
    run.metrics(1000)
    assert ship(settings, run.folder, run.index, {})
    old = cursor_of(run)["run_id"]
    run.metrics(2000)
    run.checkpoint(2000, 20.0)
    run.metrics(2000, **{"loss/D": 7.0, "loss/G": 8.0})
    run.end(2000)
    client = connect(settings)
    for _ in range(2):
        assert ship(settings, run.folder, run.index, {})
        assert cursor_of(run)["run_id"] == old and run_ids(settings, client) == {old}
        assert logged_metrics(client, old) == written_metrics(run)
        assert models_of(client, old) == []
        assert client.get_run(old).info.status == "FINISHED"


@pytest.mark.slow
def test_a_checkpoint_of_before_the_cut_is_the_version_that_it_was(workspace: Path) -> None:
    settings = config(workspace, model="before-the-cut")
    run = Run(settings, index())
    run.checkpoint(1000, 10.0)
    run.metrics(2000)
    first = versions.register_best(settings, run.folder, run.index, {})
    run.metrics(2000, **{"loss/D": 7.0, "loss/G": 8.0})
    run.end(2000)
    again = versions.register_best(settings, run.folder, run.index, {})
    assert cursor_of(run)["run_id"] != first.run_id
    assert (again.version, again.alias, again.run_id) == (1, "champion", first.run_id)


@pytest.mark.slow
def test_death_after_any_call_while_a_past_is_left(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever the shipper dies, before or after the cut, there are two MLflow runs in the end: the
    abandoned one, closed, and the present, everything in it once."""
    settings = config(workspace)
    client = connect(settings)
    died = []
    for nth in range(1, 100):
        others = run_ids(settings, client) if nth > 1 else set()
        run = Run(settings, index(), f"run-{nth}")
        run.metrics(1000)
        run.metrics(2000)
        assert ship(settings, run.folder, run.index, {})
        old = cursor_of(run)["run_id"]
        run.metrics(2000, **{"loss/D": 7.0, "loss/G": 8.0})
        run.checkpoint(2000, 40.0)
        run.end(2000)
        with monkeypatch.context() as patch:
            kill_after(patch, WRITERS, nth)
            try:
                ship(settings, run.folder, run.index, {})
            except Killed as where:
                died.append(str(where))
        assert ship(settings, run.folder, run.index, {})
        new = cursor_of(run)["run_id"]
        assert run_ids(settings, client) - others == {old, new}
        assert client.get_run(old).data.tags["gan_train.followed_by"] == new
        assert client.get_run(old).info.status == "KILLED"
        assert client.get_run(new).info.status == "FINISHED"
        assert logged_metrics(client, new) == written_metrics(run)
        assert models_of(client, new) == [("checkpoint-000000002000", "READY")]
        if len(died) < nth:
            break
    assert set(died) >= {"set_terminated", "set_tag", "create_run", "log_batch"}, died


@pytest.mark.slow
def test_a_delivery_that_may_have_arrived_counts(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The shipper dies with the events in MLflow and the cursor before them; then comes the cut."""
    settings = config(workspace)
    run = Run(settings, index())
    run.metrics(1000)
    assert ship(settings, run.folder, run.index, {})
    old = cursor_of(run)["run_id"]
    run.metrics(2000)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_after(patch, ["log_batch"], 1)
        ship(settings, run.folder, run.index, {})
    run.metrics(2000, **{"loss/D": 7.0, "loss/G": 8.0})
    run.end(2000)
    assert ship(settings, run.folder, run.index, {})
    assert cursor_of(run)["run_id"] != old
    client = connect(settings)
    assert logged_metrics(client, cursor_of(run)["run_id"]) == written_metrics(run)
