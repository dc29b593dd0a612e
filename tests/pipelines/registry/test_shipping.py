"""The event log reaches MLflow exactly once, whatever is killed, and never holds training up."""

from __future__ import annotations

import json
import logging
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from gan_train.config import Config
from gan_train.errors import UserError
from gan_train.runs.events import read_with_offsets
from pipelines.registry import shipping, versions
from pipelines.registry.shipping import Delivery, Shipper, batches, ship
from pipelines.registry.spool import load_cursor, save_cursor
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
from tests.pipelines.registry_server import Server, free_port

# ---- the spool -----------------------------------------------------------------------------------


def test_batches_join_metrics_alone(tmp_path: Path) -> None:
    run = Run(config(tmp_path), index())
    for nimg in range(1, 401):
        run.append("metrics", nimg, values={"a": 1.0, "b": 2.0})
    run.append("image", 400, path="samples/x.png")
    run.append("metrics", 401, values={"a": 1.0})
    parts = list(batches(read_with_offsets(run.folder)))
    assert [event for part, _ in parts for event in part] == run.events()
    assert [len(part) for part, _ in parts] == [250, 150, 1, 1]
    # each part ends where the next begins
    for (_, behind), (rest, _) in pairwise(parts):
        assert next(read_with_offsets(run.folder, behind))[0] == rest[0]


def test_the_cursor_starts_anew_at_another_server(tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").write_bytes(b" " * 99)
    first = load_cursor(tmp_path, "http://127.0.0.1:1")
    save_cursor(tmp_path, replace(first, run_id="r1", offset=77))
    again = load_cursor(tmp_path, "http://127.0.0.1:1")
    assert (again.key, again.run_id, again.offset) == (first.key, "r1", 77)
    other = load_cursor(tmp_path, "http://127.0.0.1:2")
    assert (other.key, other.run_id, other.offset) == (first.key, None, 0)
    # an older, shorter log was put back: all of it again, to the same run
    save_cursor(tmp_path, replace(first, run_id="r1", offset=100))
    back = load_cursor(tmp_path, "http://127.0.0.1:1")
    assert (back.run_id, back.offset) == ("r1", 0)


# ---- a real server -------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_server_killed_in_mid_run(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Metrics keep being written without a wait; after the restart all stand there, once."""
    monkeypatch.setattr(shipping, "RETRY_S", 0.5)
    settings = config(tmp_path, tracking_uri=server.uri, model="outage")
    run = Run(settings, index())
    slowest = 0.0
    with Shipper(settings, run.folder, run.index, {"ray_job": "r"}) as shipper:
        for nimg in range(1000, 61000, 1000):
            before = time.monotonic()
            run.metrics(nimg)
            slowest = max(slowest, time.monotonic() - before)
            if nimg % 20000 == 0:
                run.image(nimg)
                run.checkpoint(nimg, 100 - nimg / 1000)
            if nimg == 25000:
                until(lambda: shipper.mlflow_run_id is not None)
                server.kill()
            if nimg == 45000:
                server.start()
            time.sleep(0.05)
        run.end(60000)
    assert slowest < 20  # the client's own retries would have taken a minute

    done = versions.register_best(settings, run.folder, run.index, {})
    client = connect(settings)
    assert done.run_id == shipper.mlflow_run_id
    assert logged_metrics(client, done.run_id) == written_metrics(run)
    assert len(image_files(client, done.run_id)) == 3 * 2
    assert models_of(client, done.run_id) == [
        (f"checkpoint-{nimg:012d}", "READY") for nimg in (20000, 40000, 60000)
    ]
    # the registry works through a server too: it refuses sources that are not its own
    assert (done.version, done.alias, done.score) == (1, "champion", 40.0)
    assert done.ui == f"{server.uri}/#/models/outage/versions/1?workflowType=machine_learning"
    folder = versions.download(settings, "champion")
    assert (folder / "generator.safetensors").is_file()
    # the picture of the card is where the card says
    version = client.get_model_version("outage", "1")
    link = version.description.split("](get-artifact")[1].split(")")[0]
    with urllib.request.urlopen(f"{server.uri}/get-artifact{link}", timeout=20) as answer:
        assert answer.read(8) == b"\x89PNG\r\n\x1a\n"


def until(condition: Any, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def test_mlflow_waits_for_the_workers(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would take seconds from them while they start; afterwards everything is there."""
    settings = config(workspace)
    run = Run(settings, index())
    run.metrics(1000)  # of an earlier training of the run
    asked = threading.Event()
    own = Delivery.once

    def once(delivery: Delivery, status: str | None = None) -> str:
        asked.set()
        return own(delivery, status)

    monkeypatch.setattr(Delivery, "once", once)
    with Shipper(settings, run.folder, run.index, {}) as shipper:
        assert not asked.wait(3 * shipping.LOOK_S)
        run.metrics(2000)
        assert asked.wait(60)
    assert logged_metrics(connect(settings), str(shipper.mlflow_run_id)) == written_metrics(run)


def test_a_log_that_cannot_be_read_for_a_moment(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(workspace)
    run = Run(settings, index())
    own, failed = shipping.last_event, threading.Event()

    def last_event(run_dir: Path) -> Any:
        if not failed.is_set():
            failed.set()
            raise OSError(116, "Stale file handle")
        return own(run_dir)

    monkeypatch.setattr(shipping, "last_event", last_event)
    with Shipper(settings, run.folder, run.index, {}) as shipper:
        assert failed.wait(60)
        run.metrics(1000)
    assert logged_metrics(connect(settings), str(shipper.mlflow_run_id)) == written_metrics(run)


@pytest.mark.slow
def test_a_server_that_stays_away(workspace: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Leaving the block neither raises nor waits for long; what is left is told and kept."""
    settings = config(workspace, tracking_uri=f"http://127.0.0.1:{free_port()}")
    run = Run(settings, index())
    before = time.monotonic()
    with caplog.at_level(logging.WARNING), Shipper(settings, run.folder, run.index, {}) as shipper:
        run.metrics(1000)
    assert time.monotonic() - before < shipping.DEADLINE_S + 60
    assert shipper.mlflow_run_id is None
    assert "not all of" in caplog.text and str(run.folder) in caplog.text
    assert not ship(settings, run.folder, run.index, {})
    run.checkpoint(1000, 50.0)
    with pytest.raises(UserError, match="nothing is lost"):
        versions.register_best(settings, run.folder, run.index, {})

    # later, somewhere else
    here = config(workspace)
    assert ship(here, run.folder, run.index, {})
    client = connect(here)
    run_id = json.loads((run.folder / "mlflow.json").read_text())["run_id"]
    assert logged_metrics(client, run_id) == written_metrics(run)


# ---- killed shippers -----------------------------------------------------------------------------

_SHIP_AND_DIE = """
import os, signal, sys
from pathlib import Path
from gan_train.config import Config
from gan_train.data.index import Index
from pipelines.registry import shipping

saves = 0
save_cursor = shipping.save_cursor

def die_before_the_nth(run_dir, cursor):
    global saves
    saves += 1
    if saves == int(sys.argv[4]):
        os.kill(os.getpid(), signal.SIGKILL)
    save_cursor(run_dir, cursor)

shipping.save_cursor = die_before_the_nth
config = Config.model_validate_json(sys.argv[1])
shipping.ship(config, Path(sys.argv[2]), Index.load(Path(sys.argv[3])), {})
"""


@pytest.mark.slow
@pytest.mark.parametrize("nth", [1, 2, 3, 7])
def test_sigkill_between_delivery_and_cursor(workspace: Path, nth: int) -> None:
    """The run was made, or the metrics or the checkpoint were sent, and nobody remembers; or it is
    only known that the metrics were about to be sent."""
    settings = config(workspace)
    run = full_run(settings)
    run.index.save(workspace)
    arguments = [settings.model_dump_json(), str(run.folder), str(workspace), str(nth)]
    died = subprocess.run([sys.executable, "-c", _SHIP_AND_DIE, *arguments], timeout=120)
    assert died.returncode == -signal.SIGKILL
    assert ship(settings, run.folder, run.index, {})
    assert_everything_stands_once(settings, run)


def full_run(settings: Config, name: str = "run") -> Run:
    run = Run(settings, index(), name)
    run.metrics(1000)
    run.image(1000)
    run.checkpoint(1000, 50.0)
    run.metrics(2000)
    run.end(2000)
    return run


def assert_everything_stands_once(settings: Config, run: Run) -> None:
    client = connect(settings)
    experiment = client.get_experiment_by_name(settings.registry.experiment)
    assert experiment is not None
    key = json.loads((run.folder / "mlflow.json").read_text())["key"]
    (found,) = client.search_runs([experiment.experiment_id], f"tags.`gan_train.key` = '{key}'")
    run_id = found.info.run_id
    assert logged_metrics(client, run_id) == written_metrics(run)
    assert len(image_files(client, run_id)) == 2
    assert models_of(client, run_id) == [("checkpoint-000000001000", "READY")]
    assert len(found.outputs.model_outputs) == 1 and len(found.inputs.dataset_inputs) == 1
    (model,) = client.search_logged_models(
        [experiment.experiment_id], f"source_run_id = '{run_id}'"
    )
    assert sorted(m.key for m in model.metrics) == sorted(run.events()[2]["scores"])
    assert found.data.params["family.z_dim"] == "8"
    assert found.info.status == "FINISHED"


@pytest.mark.slow
def test_death_after_any_call_to_mlflow(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For every n: the shipper dies right after its n-th call was obeyed, and starts again."""
    settings = config(workspace)
    died = []
    for nth in range(1, 100):
        run = full_run(settings, f"run-{nth}")
        with monkeypatch.context() as patch:
            kill_after(patch, WRITERS, nth)
            try:
                ship(settings, run.folder, run.index, {})
            except Killed as where:
                died.append(str(where))
        if len(died) < nth:
            break
        assert ship(settings, run.folder, run.index, {})
        assert_everything_stands_once(settings, run)
    assert set(died) >= set(WRITERS) - {"update_run"}, died


@pytest.mark.slow
@pytest.mark.fault(
    "the record of what MLflow has of a run empty or garbled",
    "its MLflow run is found again, and everything stands there once",
)
@pytest.mark.parametrize("left", ["", '{"key": "abc', "[1]"])
def test_a_damaged_cursor(workspace: Path, left: str) -> None:
    settings = config(workspace)
    run = full_run(settings)
    assert ship(settings, run.folder, run.index, {})
    record = run.folder / "mlflow.json"
    before = json.loads(record.read_text())["run_id"]
    record.write_text(left)
    assert ship(settings, run.folder, run.index, {})
    assert json.loads(record.read_text())["run_id"] == before
    assert_everything_stands_once(settings, run)

    # where training went on otherwise, what was abandoned may have arrived: another run replaces it
    run.append("cut", 2000)
    run.metrics(2000, **{"loss/D": 7.0})
    run.end(2000)
    record.write_text(left)
    assert ship(settings, run.folder, run.index, {})
    assert json.loads(record.read_text())["run_id"] != before
    assert_everything_stands_once(settings, run)


@pytest.mark.slow
def test_two_shippers_of_one_run(workspace: Path) -> None:
    """A second process (or thread) with the same folder waits, and doubles nothing."""
    settings = config(workspace)
    run = full_run(settings)
    results: list[bool] = []
    threads = [
        threading.Thread(target=lambda: results.append(ship(settings, run.folder, run.index, {})))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True, True]
    assert_everything_stands_once(settings, run)
