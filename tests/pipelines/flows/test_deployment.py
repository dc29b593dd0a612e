"""The deployments of infra/prefect on a real Prefect server: run, one after another, and cancelled
by a real worker."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import pytest

from gan_train import recipes
from gan_train.config import Config
from gan_train.errors import UserError
from gan_train.runs import run_folder
from pipelines.flows.on_demand import Training
from tests.training import tiny_config

ROOT = Path(__file__).parents[3]
INFRA = ROOT / "infra" / "prefect"
PREFECT = str(Path(sys.executable).with_name("prefect"))


class Server:
    """A Prefect server and a worker, each in a session of its own."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}/api"
        self.environment = os.environ | {
            "PREFECT_HOME": str(folder),
            "PREFECT_API_URL": self.url,
            "PREFECT_WORKER_QUERY_SECONDS": "1",
            "PREFECT_RUNNER_POLL_FREQUENCY": "1",
        }
        self._log = (folder / "log.txt").open("w")
        self._processes: list[subprocess.Popen[bytes]] = []
        self.start("server", "start", "--host", "127.0.0.1", "--port", str(port))
        self.wait(self._healthy, 120)

    def start(self, *arguments: str) -> None:
        self._processes.append(
            subprocess.Popen(
                [PREFECT, *arguments],
                cwd=ROOT,
                env=self.environment,
                stdout=self._log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        )

    def call(self, *arguments: str, status: int = 0) -> str:
        """What a command of Prefect prints; it must end with `status`."""
        done = subprocess.run(
            [PREFECT, *arguments],
            cwd=ROOT,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout + done.stderr

    def get(self, path: str) -> Any:
        return httpx.get(f"{self.url}/{path}", timeout=30).raise_for_status().json()

    def post(self, path: str, content: Any) -> Any:
        return httpx.post(f"{self.url}/{path}", json=content, timeout=30).raise_for_status().json()

    def wait(self, ready: Callable[[], bool], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not ready():
            assert time.monotonic() < deadline, Path(self._log.name).read_text()[-3000:]
            time.sleep(0.3)

    def _healthy(self) -> bool:
        try:
            return bool(urllib.request.urlopen(f"{self.url}/health", timeout=5).status == 200)
        except OSError:
            return False

    def close(self) -> None:
        for process in reversed(self._processes):
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait(30)
        self._log.close()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    (tmp_path / "prefect").mkdir()
    started = Server(tmp_path / "prefect")
    try:
        yield started
    finally:
        started.close()


def training(workspace: Path) -> list[int]:
    """Processes of Ray that work for this run: they have its workspace in their environment."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if f"GAN_TRAIN_TEST={workspace}".encode() in (entry / "environ").read_bytes():
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


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


@pytest.mark.slow
@pytest.mark.timeout(1200)  # two runs, one after the other, and the commands of a server's set-up
def test_deployed_run_by_a_worker_and_cancelled(
    server: Server, tiny_source: Path, tmp_path: Path
) -> None:
    workspace = tmp_path / "workspace"
    server.environment["GAN_TRAIN_TEST"] = str(workspace)
    server.call("work-pool", "create", "gan-train", "--type", "process")
    server.call("work-pool", "set-concurrency-limit", "gan-train", "1")
    server.call("--no-prompt", "deploy", "--prefect-file", str(INFRA / "prefect.yaml"), "--all")
    server.call("automation", "create", "--from-file", str(INFRA / "automations.yaml"))
    deployment = server.get("deployments/name/nightly/nightly")
    (schedule,) = deployment["schedules"]
    assert schedule["schedule"]["cron"] == "0 2 * * *" and schedule["active"]
    properties = deployment["parameter_openapi_schema"]["definitions"]["Config"]["properties"]
    assert properties.keys() == Config.model_fields.keys() - {"store"}, (
        "the form shows the whole tree"
    )
    server.start("worker", "start", "--pool", "gan-train")
    server.wait(
        lambda: any(run["auto_scheduled"] for run in server.post("flow_runs/filter", {})), 60
    )

    def run(deployment: str, **parameters: Any) -> UUID:
        wanted = {"parameters": parameters}
        return UUID(server.post(f"deployments/{deployment}/create_flow_run", wanted)["id"])

    def state(flow_run: UUID) -> str:
        return str(server.get(f"flow_runs/{flow_run}")["state"]["type"])

    # A wrong tree is refused when it is asked for
    config = tiny_config(tiny_source, workspace, evaluate__metrics=["frechet"], evaluate__batch=8)
    wrong = {"parameters": {"config": config.model_dump(mode="json") | {"nmae": "x"}}}
    answer = httpx.post(f"{server.url}/deployments/{deployment['id']}/create_flow_run", json=wrong)
    assert answer.status_code in (409, 422) and "nmae" in answer.text

    # So is a form with a mistake that a schema can tell, also by the command of Prefect
    form = server.get("deployments/name/on-demand/on-demand")["id"]
    for mistake, says in (
        ({"recipe": "demmo"}, "'demmo' is not one of"),
        ({"recipe": "demo", "workers": 0}, "0 is less than the minimum of 1"),
        ({"recipe": "demo", "settings": ["train.batch"]}, "'train.batch' does not match"),
    ):
        wrong = {"parameters": {"training": mistake}}
        answer = httpx.post(f"{server.url}/deployments/{form}/create_flow_run", json=wrong)
        assert answer.status_code == 409 and says in answer.text
    asked = ("deployment", "run", "on-demand/on-demand", "--param")
    said = server.call(*asked, 'training={"recipe": "demmo"}', status=1)
    assert "'demmo' is not one of" in " ".join(said.split())
    assert not server.post("flow_runs/filter", {"deployments": {"id": {"any_": [form]}}})

    # The rest is refused before anything is done, once, in the words of `gan-train run`
    bad = run(form, training={"recipe": "demo", "settings": ["train.bacth=64"]})
    with pytest.raises(UserError) as told:
        recipes.load("demo", ["train.bacth=64"])
    server.wait(lambda: state(bad) == "FAILED", 120)
    refused = server.get(f"flow_runs/{bad}")
    assert (refused["state"]["message"], refused["run_count"]) == (str(told.value), 1)

    # A whole run, and one behind it, which waits for the pool's limit
    first = run(deployment["id"], config=config.model_dump(mode="json"))
    asked = {"recipe": "demo", "workers": 2, "settings": long_settings(tiny_source, workspace)}
    long = Training.model_validate(asked).config()
    second = run(form, training=asked)
    server.wait(lambda: state(first) in ("COMPLETED", "FAILED", "CRASHED"), 400)
    assert state(first) == "COMPLETED", server.get(f"flow_runs/{first}")["state"]
    (run_dir,) = run_folder.runs_of(config)
    assert run_folder.finished(run_folder.read_events(run_dir))

    # The other is cancelled while it trains
    server.wait(
        lambda: bool(list(run_folder.folder(long).glob("long-*/checkpoints/*/scores.json"))), 400
    )
    ended, begun = (
        server.get(f"flow_runs/{first}")["end_time"],
        server.get(f"flow_runs/{second}")["start_time"],
    )
    assert datetime.fromisoformat(begun) >= datetime.fromisoformat(ended)
    assert training(workspace)
    server.post(f"flow_runs/{second}/set_state", {"state": {"type": "CANCELLING"}})
    server.wait(lambda: state(second) == "CANCELLED", 120)
    (long_dir,) = run_folder.folder(long).glob("long-*")
    assert not run_folder.finished(run_folder.read_events(long_dir))
    # only the worker itself, which has the same environment, is left
    server.wait(lambda: len(training(workspace)) <= 1, 60)
