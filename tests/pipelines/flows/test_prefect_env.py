"""The embedded Prefect server: it ends with its command, and says why where it does not start."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import urlparse

import pytest
from docket import Docket, Worker
from prefect.server.api import background_workers
from prefect.server.api.background_workers import background_worker

from pipelines.flows import prefect_server

PREPARE = """
import os, sys, time
from gan_train import recipes
from pipelines.flows import prefect_env
prefect_env.prepare(recipes.load("demo", [f"workspace={sys.argv[1]}"]))
print(os.environ["PREFECT_API_URL"], flush=True)
time.sleep(600)
"""

SHOWS = """
import sys
from gan_train import recipes
from pipelines.flows import prefect_env
prefect_env.prepare(recipes.load("demo", [f"workspace={sys.argv[1]}"]))
import time
from prefect import flow, get_run_logger, task
from prefect.artifacts import create_progress_artifact
from prefect.client.orchestration import get_client

@task
def part():
    get_run_logger().info("said by the task")
    create_progress_artifact(progress=50.0, key="half")

@flow
def whole():
    part()

whole()
import os, urllib.error, urllib.request
try:
    urllib.request.urlopen(os.environ["PREFECT_API_URL"] + "/admin/version")
except urllib.error.HTTPError as refused:
    print("without the password", refused.code)
end = time.monotonic() + 60
with get_client(sync_client=True) as client:
    # Prefect sends task runs and logs in the background
    while time.monotonic() < end:
        (ran,) = client.read_flow_runs()
        tasks = [(t.name.split("-")[0], t.state_name) for t in client.read_task_runs()]
        logs = [log.message for log in client.read_logs()]
        if tasks == [("part", "Completed")] and "said by the task" in logs:
            break
        time.sleep(0.2)
    print(ran.state_name, tasks, [(a.key, a.data) for a in client.read_artifacts()])
    print("said by the task" in logs)
"""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def command(workspace: Path) -> list[str]:
    return [sys.executable, "-c", PREPARE, str(workspace)]


def test_the_server_ends_with_a_command_that_is_killed(tmp_path: Path) -> None:
    with subprocess.Popen(command(tmp_path), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        url = urlparse(process.stdout.readline().strip())
        address = (str(url.hostname), int(url.port or 0))
        assert address[0] == "127.0.0.1"
        socket.create_connection(address).close()
        process.kill()
    end = time.monotonic() + 60
    while time.monotonic() < end:
        try:
            socket.create_connection(address).close()
        except ConnectionRefusedError:
            return
        time.sleep(0.2)
    pytest.fail("the server still listens")


def test_flows_tasks_logs_and_artifacts_are_recorded(tmp_path: Path) -> None:
    """With the services that are switched off for a server of one command."""
    shown = subprocess.run(
        [sys.executable, "-c", SHOWS, str(tmp_path)], capture_output=True, text=True, timeout=250
    )
    assert shown.stdout.splitlines() == [
        "without the password 401",
        "Completed [('part', 'Completed')] [('half', 50)]",
        "True",
    ], shown.stderr


def test_the_server_looks_for_background_tasks_with_patience(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Prefect has no setting for it: the class is replaced where Prefect takes it from."""
    made = []

    class Recorded(Worker):
        async def __aenter__(self) -> Worker:
            made.append((self.minimum_check_interval, self.scheduling_resolution))
            return await super().__aenter__()

    async def serve() -> None:
        async with Docket("test", "memory://") as docket, background_worker(docket, ephemeral=True):
            pass

    monkeypatch.setattr(background_workers, "Worker", prefect_server.patient(Recorded))
    asyncio.run(serve())
    assert made == [(prefect_server.CHECK_EVERY, prefect_server.CHECK_EVERY)]


def test_a_server_that_does_not_start_is_told_with_its_log(tmp_path: Path) -> None:
    nowhere = f"sqlite+aiosqlite:///{tmp_path}/no/such/folder/prefect.db"
    failed = subprocess.run(
        command(tmp_path),
        capture_output=True,
        text=True,
        env=os.environ | {"PREFECT_SERVER_DATABASE_CONNECTION_URL": nowhere},
        timeout=200,
    )
    log = tmp_path / "prefect" / "server.log"
    assert "Prefect's server did not start" in failed.stderr and str(log) in failed.stderr
    assert "unable to open database file" in log.read_text()
