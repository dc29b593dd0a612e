"""The deployments of infra/prefect on a real Prefect server: run by a real worker, one after
another, cancelled, trained on without the servers, and killed with the worker."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import yaml

from gan_train import recipes
from gan_train.config import Config
from gan_train.errors import UserError
from gan_train.runs import run_folder
from gan_train.runs.checkpoint import list_checkpoints
from gan_train.runs.events import Event
from pipelines.compute.training import STOP, WORKER_LOG
from pipelines.flows.on_demand import Training
from pipelines.registry.spool import CURSOR_NAME
from tests.pipelines import registry_server
from tests.prefect_site import INFRA, PREFECT, Site, kill
from tests.training import tiny_config, tiny_images
from tests.webhook import Webhook, told_by

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

AWAY_S = 60.0
"""How long the servers are away."""
SILENT_S = 60
"""After so many seconds without a heartbeat, which comes every 30 here, a run counts as crashed."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    started = Site(tmp_path_factory.mktemp("site"))
    try:
        started.call(PREFECT, "work-pool", "create", "gan-train", "--type", "process")
        started.call(PREFECT, "work-pool", "set-concurrency-limit", "gan-train", "1")
        deploy = ("deploy", "--prefect-file", str(INFRA / "prefect.yaml"), "--all")
        started.call(PREFECT, "--no-prompt", *deploy)
        started.start_worker()
        yield started
    finally:
        started.close()


@pytest.fixture(scope="module")
def team(site: Site) -> Iterator[Webhook]:
    with told_by(site) as hook:
        yield hook


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_images(tmp_path_factory.mktemp("images") / "source")


def long_settings(source: Path, workspace: Path) -> list[str]:
    """Settings that make the demo tiny, with a checkpoint soon, and long."""
    return [
        *("name=long", f"workspace={workspace}", f"data.source={source}", "data.resolution=8"),
        *("data.shard_images=16", "data.lanes=4", "data.block=4"),
        *("family.channels={4: 8, 8: 8}", "family.z_dim=8", "family.milestones_from=4"),
        *("family.fade_kimg=0.064", "family.stable_kimg=0.064"),
        *("train.batch=16", "train.total_kimg=1000", "train.checkpoint_kimg=10"),
        *("evaluate.metrics=[diversity]", "evaluate.images=16"),
    ]


SEND_ALARM = """
from pipelines.flows import artifacts
artifacts.alarm("demo-7", "two images are gone")
"""


@pytest.mark.fault(
    "a flow run cancelled under a Prefect worker",
    "the workers save, also if it is sent SIGTERM twice; Cancelled, nothing crashed or left "
    "running; its page says how to go on",
)
def test_deployed_run_by_a_worker_and_cancelled(
    site: Site,
    team: Webhook,
    source: Path,
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    workspace = tmp_path / "workspace"
    deployment = site.deployment("nightly/nightly")
    (schedule,) = deployment["schedules"]
    assert schedule["schedule"]["cron"] == "0 2 * * *" and schedule["active"]
    properties = deployment["parameter_openapi_schema"]["definitions"]["Config"]["properties"]
    assert properties.keys() == Config.model_fields.keys() - {"store"}, (
        "the form shows the whole tree"
    )
    site.wait(lambda: any(run["auto_scheduled"] for run in site.post("flow_runs/filter", {})), 60)

    # A wrong tree is refused when it is asked for
    config = tiny_config(source, workspace, evaluate__metrics=["frechet"], evaluate__batch=8)
    wrong = {"parameters": {"config": config.model_dump(mode="json") | {"nmae": "x"}}}
    answer = site.ask("POST", f"deployments/{deployment['id']}/create_flow_run", wrong)
    assert answer.status_code in (409, 422) and "nmae" in answer.text

    # So is a form with a mistake that a schema can tell, also by the command of Prefect
    form = site.deployment("on-demand/on-demand")["id"]
    for mistake, says in (
        ({"recipe": "demmo"}, "'demmo' is not one of"),
        ({"recipe": "demo", "workers": 0}, "0 is less than the minimum of 1"),
        ({"recipe": "demo", "settings": ["train.batch"]}, "'train.batch' does not match"),
    ):
        wrong = {"parameters": {"training": mistake}}
        answer = site.ask("POST", f"deployments/{form}/create_flow_run", wrong)
        assert answer.status_code == 409 and says in answer.text
    by_command = (PREFECT, "deployment", "run", "on-demand/on-demand", "--param")
    said = site.call(*by_command, 'training={"recipe": "demmo"}', status=1)
    assert "'demmo' is not one of" in " ".join(said.split())
    assert not site.post("flow_runs/filter", {"deployments": {"id": {"any_": [form]}}})

    # The rest is refused before anything is done, once, in the words of `gan-train run`
    bad = site.run(form, training={"recipe": "demo", "settings": ["train.bacth=64"]})
    with pytest.raises(UserError) as told:
        recipes.load("demo", ["train.bacth=64"])
    site.wait(lambda: site.state(bad) == "FAILED", 120)
    refused = site.get(f"flow_runs/{bad}")
    assert (refused["state"]["message"], refused["run_count"]) == (str(told.value), 1)

    # Whoever is to know is told: of this failure, of an alarm, and below of a champion
    def told_of(subject: str) -> str:
        site.wait(lambda: team.bodies(subject), 60)
        (body,) = team.bodies(subject)
        return body

    body = told_of(" is Failed$")
    assert body.startswith(str(told.value)) and f"/runs/flow-run/{bad}" in body
    site.call(sys.executable, "-c", SEND_ALARM)
    assert told_of("^demo-7 needs a look$") == "two images are gone"

    # A whole run, and one behind it, which waits for the pool's limit
    first = site.run(deployment["id"], config=config.model_dump(mode="json"))
    asked = {"recipe": "demo", "workers": 2, "settings": long_settings(source, workspace)}
    long = Training.model_validate(asked).config()
    second = site.run(form, training=asked)
    site.wait(lambda: site.state(first) in ("COMPLETED", "FAILED", "CRASHED"), 400)
    assert site.state(first) == "COMPLETED", site.get(f"flow_runs/{first}")["state"]
    (run_dir,) = run_folder.runs_of(config)
    assert run_folder.finished(run_folder.read_events(run_dir))
    assert told_of("version 1 is champion$").startswith("first scored version, ")

    # The other is cancelled while it trains
    site.wait(
        lambda: bool(list(run_folder.folder(long).glob("long-*/checkpoints/*/scores.json"))), 400
    )
    ended, begun = (
        site.get(f"flow_runs/{first}")["end_time"],
        site.get(f"flow_runs/{second}")["start_time"],
    )
    assert datetime.fromisoformat(begun) >= datetime.fromisoformat(ended)
    asked_to = {"state": {"type": "CANCELLING", "message": "too dear"}}
    (long_dir,) = run_folder.folder(long).glob("long-*")
    started = site.processes().items()
    flow = next(pid for pid, command in started if "-m prefect.engine" in command)
    worker = next(pid for pid, command in started if command.startswith("ray::RayTrainWorker"))
    os.kill(worker, signal.SIGSTOP)  # saving takes long
    site.post(f"flow_runs/{second}/set_state", asked_to)
    site.wait((long_dir / STOP).exists, 60)
    # Prefect may hear of it twice, and asks twice then
    for _ in range(2):
        time.sleep(4)
        os.kill(flow, signal.SIGTERM)
    time.sleep(4)
    ended = [state for state in site.states("flow_run") if state["type"] == "CANCELLED"]
    os.kill(worker, signal.SIGCONT)
    assert not ended, "before the workers have saved"
    site.wait(lambda: site.state(second) == "CANCELLED", 120)
    events = run_folder.read_events(long_dir)
    assert events[-1]["status"] == "stopped"
    assert int(list_checkpoints(long_dir)[0].name) == events[-1]["nimg"]
    site.wait(lambda: not site.processes(), 60)
    record_property("lost", "nothing")

    # Nothing crashed on the way, and it is told where to go on
    of_flows, of_tasks = site.states("flow_run"), site.states("task_run")
    assert not [state for state in of_flows + of_tasks if state["type"] == "CRASHED"]
    said = f"stopped at {events[-1]['nimg'] / 1000:.1f} kimg; go on with --resume {long_dir.name}"
    assert said in {state["message"] for state in of_flows}
    (page,) = site.artifacts(second, "stopped")
    assert "cancelled: too dear" in page["data"]
    assert f"gan-train run {long_dir}/config.yaml --resume {long_dir.name}\n```" in page["data"]
    with closing(sqlite3.connect(workspace / "mlflow.db")) as database:
        statuses = {status for (status,) in database.execute("SELECT status FROM runs")}
    assert statuses == {"FINISHED", "KILLED"}


@pytest.mark.fault(
    "a run of a flow that `prefect flow serve` serves, cancelled while it trains",
    "the workers save; Cancelled, nothing crashed or left running, and the flow is still served",
)
def test_a_flow_served_without_a_pool(
    site: Site, source: Path, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    (told,) = re.findall("prefect (flow serve .*)", (INFRA / "prefect.yaml").read_text())
    served = site.start(*shlex.split(told))
    place = "deployments/name/on-demand/served"
    site.wait(lambda: site.ask("GET", place).is_success, 60)
    form = site.get(place)["id"]
    settings = [*long_settings(source, tmp_path / "workspace"), "cluster.workers=1"]
    scored = ["evaluate.metrics=[frechet]", "evaluate.batch=8"]
    short = {"recipe": "demo", "settings": [*settings, *scored, "train.total_kimg=0.3"]}
    long = {"recipe": "demo", "settings": [*settings, "name=longer"]}
    first, second = (site.run(form, training=asked) for asked in (short, long))
    site.wait(lambda: site.state(first) in ("COMPLETED", "FAILED", "CRASHED"), 200)
    assert site.state(first) == "COMPLETED", site.get(f"flow_runs/{first}")["state"]

    runs = run_folder.folder(Training.model_validate(long).config())
    site.wait(lambda: list(runs.glob("longer-*/checkpoints/*/scores.json")), 200)
    ended, begun = (
        datetime.fromisoformat(site.get(f"flow_runs/{run}")[time])
        for run, time in ((first, "end_time"), (second, "start_time"))
    )
    assert begun >= ended, "one after the other"
    site.post(f"flow_runs/{second}/set_state", {"state": {"type": "CANCELLING"}})
    site.wait(lambda: site.state(second) == "CANCELLED", 60)
    (run_dir,) = runs.glob("longer-*")
    last = run_folder.read_events(run_dir)[-1]
    assert (last["kind"], last["status"]) == ("end", "stopped")
    assert int(list_checkpoints(run_dir)[0].name) == last["nimg"]
    site.wait(lambda: not site.processes(), 60)
    record_property("lost", "nothing")
    assert served.poll() is None
    assert not [state for state in site.states("task_run") if state["type"] == "CRASHED"]


# ---- servers that are away ---------------------------------------------------------------------


class Away:
    """A long run of a deployment, whose MLflow server comes later."""

    def __init__(self, site: Site, source: Path, folder: Path) -> None:
        self.mlflow = registry_server.Server(folder)
        asked = {
            "recipe": "demo",
            "settings": [
                *long_settings(source, folder / "workspace"),
                f"registry.tracking_uri={self.mlflow.uri}",
                *("cluster.workers=1", "train.total_kimg=100000", "train.tick_kimg=0.32"),
                *("train.checkpoint_kimg=100000", "train.sample_kimg=100000"),
            ],
        }
        self.config = Training.model_validate(asked).config()
        self.flow_run = site.run(site.deployment("on-demand/on-demand")["id"], training=asked)

    @property
    def run_dir(self) -> Path:
        (found,) = run_folder.runs_of(self.config)
        return found

    def trains(self) -> bool:
        return bool(run_folder.runs_of(self.config)) and bool(list_checkpoints(self.run_dir))

    def ticks(self) -> list[Event]:
        return [e for e in run_folder.read_events(self.run_dir) if e["kind"] == "metrics"]

    def delivered(self) -> int:
        """How many bytes of the log have reached MLflow."""
        path = self.run_dir / CURSOR_NAME
        return int(json.loads(path.read_text())["offset"]) if path.exists() else 0

    def log_length(self) -> int:
        return (self.run_dir / "events.jsonl").stat().st_size

    def mlflow_runs(self) -> list[dict[str, Any]]:
        answer = httpx.post(
            f"{self.mlflow.uri}/api/2.0/mlflow/runs/search",
            json={"experiment_ids": [str(number) for number in range(9)]},
            timeout=60,
        )
        return list(answer.raise_for_status().json().get("runs", []))

    def history(self, run_id: str, key: str) -> list[int]:
        """The steps of a metric in MLflow, in order."""
        answer = httpx.get(
            f"{self.mlflow.uri}/api/2.0/mlflow/metrics/get-history",
            params={"run_id": run_id, "metric_key": key},
            timeout=60,
        )
        return sorted(int(m["step"]) for m in answer.raise_for_status().json()["metrics"])


@pytest.fixture(scope="module")
def away(site: Site, source: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Away]:
    started = Away(site, source, tmp_path_factory.mktemp("away"))
    try:
        yield started
    finally:
        started.mlflow.kill()


def seconds_between(ticks: list[Event], begin: float, end: float) -> np.ndarray:
    """The seconds from one tick to the next, of the ticks between two points in time."""
    times = [t["time_ms"] / 1000 for t in ticks if begin < t["time_ms"] / 1000 < end]
    return np.array([after - before for before, after in pairwise(times)])


@pytest.mark.long
@pytest.mark.fault(
    "MLflow away at the start; MLflow and Prefect's server killed in mid-run and started again "
    "after a minute",
    "trains on as fast; then every step is in MLflow once, and the flow shows progress again",
)
def test_servers_that_are_away(
    site: Site, away: Away, record_property: Callable[[str, object], None]
) -> None:
    site.wait(away.trains, 400)
    assert not away.delivered(), "there is no MLflow yet"
    away.mlflow.start()
    site.wait(away.delivered, 120)
    calm = time.time()
    site.wait(lambda: len(seconds_between(away.ticks(), calm, time.time())) > 9, 400)

    killed = time.time()
    away.mlflow.kill()
    os.killpg(site.server.pid, signal.SIGKILL)
    site.server.wait()
    time.sleep(AWAY_S)
    before, without = (
        seconds_between(away.ticks(), *times) for times in ((calm, killed), (killed, time.time()))
    )
    ratio = np.percentile(without, 99) / np.percentile(before, 99)
    record_property("lost", f"nothing; ticks took {ratio:.2f} times as long (p99)")
    # where the machine has other work, a tick may take longer; a wait for a server takes far longer
    assert np.percentile(without, 99) < max(1.5 * np.percentile(before, 99), 2.0)

    behind = away.log_length()
    restarted = time.time()
    site.start_server()
    away.mlflow.start()
    site.wait(lambda: away.delivered() > behind, 120)
    record_property("recovered_s", time.time() - restarted)
    (run,) = away.mlflow_runs()
    assert run["info"]["status"] == "RUNNING"
    steps = away.history(run["info"]["run_id"], "images_per_second")
    assert steps == [tick["nimg"] for tick in away.ticks()[: len(steps)]]

    def progress() -> str:
        return max(
            a["updated"] for a in site.post("artifacts/filter", {}) if a["type"] == "progress"
        )

    shown = progress()
    site.wait(lambda: progress() > shown, 60)
    assert site.state(away.flow_run) == "RUNNING"


@pytest.mark.long
@pytest.mark.fault(
    "SIGKILL of a Prefect worker and of its flow run's process",
    "the training ends with them, and all of Ray within 240 s; Prefect marks the flow runs as "
    "Crashed; `--resume` goes on from the last checkpoint",
)
def test_a_killed_worker(
    site: Site, away: Away, record_property: Callable[[str, object], None]
) -> None:
    if away.mlflow.process is None:
        away.mlflow.start()
    site.wait(away.trains, 400)
    # as infra/prefect has it, but sooner
    automation = yaml.safe_load((INFRA / "automations.yaml").read_text())["automations"][0]
    automation["trigger"]["within"] = SILENT_S
    made = datetime.now().astimezone().isoformat()
    site.post("automations/", automation)
    heartbeats = {
        "filter": {
            "event": {"name": ["prefect.flow-run.heartbeat"]},
            "occurred": {"since": made},
        }
    }

    def running() -> set[str]:
        asked = {"flow_runs": {"state": {"type": {"any_": ["RUNNING"]}}}}
        return {f"prefect.flow-run.{run['id']}" for run in site.post("flow_runs/filter", asked)}

    def heard() -> set[str]:
        events = site.post("events/filter", heartbeats)["events"]
        return {event["resource"]["prefect.resource.id"] for event in events}

    assert len(running()) == 2, "the deployed flow, and the training in it"
    site.wait(lambda: running() <= heard(), 90)

    (flow,) = (pid for pid, name in site.processes().items() if "-m prefect." in name)
    assert any("RayTrainWorker" in name for name in session(flow))
    killed = time.monotonic()
    os.killpg(site.worker.pid, signal.SIGKILL)
    kill(flow)
    site.wait(lambda: not any("RayTrainWorker" in name for name in session(flow)), 60)

    newest = int(list_checkpoints(away.run_dir)[0].name)
    log = away.run_dir / WORKER_LOG
    recipe, name = str(away.run_dir / run_folder.CONFIG), away.run_dir.name
    site.call(
        *(sys.executable, "-m", "pipelines.cli.main", "train", recipe, "--resume", name),
        *("--set", f"train.total_kimg={newest / 1000 + 0.1}"),
    )
    assert f"/{newest:012d} " in log.read_text().rpartition("resumed from ")[2]
    assert run_folder.finished(run_folder.read_events(away.run_dir))
    # what was told behind the checkpoint is left to an MLflow run of its own, which is closed
    statuses = sorted(run["info"]["status"] for run in away.mlflow_runs())
    assert statuses in (["FINISHED"], ["FINISHED", "KILLED"])
    record_property("lost", "what was trained since the last checkpoint")

    site.wait(lambda: not running(), SILENT_S + 120)
    record_property("recovered_s", time.monotonic() - killed)
    assert site.state(away.flow_run) == "CRASHED"
    # two helpers of Ray try for a minute and more to tell a dead one
    site.wait(lambda: not session(flow), 240 - (time.monotonic() - killed))


def session(leader: int) -> list[str]:
    """The command lines of the living processes of a session."""
    listed = subprocess.run(
        ["ps", "-ww", "--sid", str(leader), "-o", "stat=,args="],
        capture_output=True,
        text=True,
        check=False,
    )
    return [line for line in listed.stdout.splitlines() if "Z" not in line.split()[0]]
