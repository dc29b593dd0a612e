"""A real Prefect server and a worker, with the deployments of infra/prefect, for tests that cancel
and kill what they run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
from prefect.client.base import PrefectHttpxSyncClient

from pipelines.stack import processes
from tests.pipelines.registry_server import free_port

ROOT = Path(__file__).parents[1]
INFRA = ROOT / "infra" / "prefect"
PREFECT = str(Path(sys.executable).with_name("prefect"))


class Site:
    """A Prefect server and a worker with the deployments of infra/prefect."""

    def __init__(self, folder: Path) -> None:
        (folder / "prefect").mkdir()
        self.folder, self.port = folder, free_port()
        self.url = f"http://127.0.0.1:{self.port}/api"
        # as Prefect's own programs: a server whose SQLite is busy says 503, and is asked again
        self._client = PrefectHttpxSyncClient(
            base_url=self.url, timeout=30, raise_on_all_errors=False
        )
        self.environment = os.environ | {
            "PREFECT_HOME": str(folder / "prefect"),
            "PREFECT_API_URL": self.url,
            # a worker gives up after some 45 times so many seconds without a server
            "PREFECT_WORKER_QUERY_SECONDS": "3",
            "PREFECT_RUNNER_POLL_FREQUENCY": "1",
            "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
            "GAN_TRAIN_TEST": str(folder),
        }
        self._log = (folder / "log.txt").open("w")
        self._processes: list[subprocess.Popen[bytes]] = []
        self.server = self.start_server()

    def start_server(self) -> subprocess.Popen[bytes]:
        self.server = self.start(
            *("server", "start", "--host", "127.0.0.1", "--port", str(self.port))
        )
        self.wait(self._healthy, 240)
        return self.server

    def start_worker(self) -> None:
        self.worker = self.start("worker", "start", "--pool", "gan-train")

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        """A process in a session of its own."""
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
        return self._processes[-1]

    def call(self, *arguments: str, status: int = 0) -> str:
        """What a command prints; it must end with `status`."""
        done = subprocess.run(
            arguments,
            cwd=ROOT,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout + done.stderr

    def ask(self, method: str, path: str, content: Any = None) -> httpx.Response:
        """The server's answer, also where it refuses."""
        return self._client.request(method, path, json=content)

    def get(self, path: str) -> Any:
        return self.ask("GET", path).raise_for_status().json()

    def post(self, path: str, content: Any) -> Any:
        return self.ask("POST", path, content).raise_for_status().json()

    def run(self, deployment: str, **parameters: Any) -> UUID:
        """Ask for a run of the deployment with this id."""
        wanted = {"parameters": parameters}
        return UUID(self.post(f"deployments/{deployment}/create_flow_run", wanted)["id"])

    def deployment(self, name: str) -> Any:
        return self.get(f"deployments/name/{name}")

    def state(self, flow_run: UUID) -> str:
        return str(self.get(f"flow_runs/{flow_run}")["state"]["type"])

    def states(self, kind: str) -> list[dict[str, Any]]:
        """The histories of all flow runs or task runs that have begun (`flow_run`, `task_run`)."""
        return [
            state
            for run in self.post(f"{kind}s/filter", {})
            if run["start_time"]
            for state in self.get(f"{kind}_states/?{kind}_id={run['id']}")
        ]

    def artifacts(self, flow_run: UUID, key: str) -> list[Any]:
        wanted = {"flow_runs": {"id": {"any_": [str(flow_run)]}}}
        return [a for a in self.post("artifacts/filter", wanted) if a["key"] == key]

    def processes(self) -> dict[int, str]:
        """The command lines of all processes of flow runs, and what they have started, by number.
        They have the site's folder in their environment, as server and worker have."""
        found = {}
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                environment = processes.environment(int(entry.name))
                if b"PREFECT__FLOW" in environment and self._mark in environment:
                    command = (entry / "cmdline").read_bytes().replace(b"\0", b" ")
                    found[int(entry.name)] = command.decode()
            except OSError:  # no process, or it has just ended
                continue
        return found

    @property
    def _mark(self) -> bytes:
        return f"GAN_TRAIN_TEST={self.folder}".encode()

    def wait(self, ready: Callable[[], object], seconds: float) -> None:
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
        for pid in self.processes():
            kill(pid)
        for process in reversed(self._processes):
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(30)
        self._client.close()
        self._log.close()


def kill(pid: int) -> None:
    """SIGKILL, if the process still lives."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
