"""What the services are: their commands, their environment, and how each is asked for its health.

All of them listen on 127.0.0.1 alone and ask for a password or a token. Secrets reach them by the
environment or by files that nobody else may read, never by a command line.
"""

from __future__ import annotations

import base64
import http.client
import json
import socket
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pipelines.compute.cluster import LOOPBACK, QUIET
from pipelines.stack.record import MLFLOW, PREFECT, RAY, USER, WORKER, Service, Stack

HOST = "127.0.0.1"
POOL = "gan-train"
"""Prefect's work pool, whose flow runs the worker starts."""
_TIMEOUT_S = 5.0
_PREFECT_ENVIRONMENT = {"PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "1"}
_MLFLOW_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "1",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    # nothing here gives the server jobs to do, and it would start processes for them
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
}
_RAY_ENVIRONMENT = {
    # workers have no other node to move to
    "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
}
_AUTH_INI = """\
[mlflow]
default_permission = READ
database_uri = sqlite:///{folder}/mlflow_auth.db
admin_username = {user}
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
# a password is checked by a slow hash, which is done once in this time and not at each request
auth_cache_ttl_seconds = 600
"""


@dataclass(frozen=True)
class Start:
    """How to start a service."""

    arguments: Sequence[str]
    """The arguments of this Python."""
    environment: dict[str, str]
    port: int = 0
    address: str = ""
    temporary: str = ""


def free_ports(*wanted: int) -> list[int]:
    """TCP ports of 127.0.0.1, all different: the wanted ones, or others where they are taken."""
    with ExitStack() as held:

        def take(port: int) -> int:
            try:
                server = socket.create_server((HOST, port))
            except OSError:
                server = socket.create_server((HOST, 0))
            return int(held.enter_context(server).getsockname()[1])

        return [take(port) for port in wanted]


def start_of(stack: Stack, name: str, cpus: int) -> Start:
    """How to start the service `name` of this stack now; Ray gives `cpus` CPUs to workers."""
    if name == RAY:
        return _ray(stack, cpus)
    return {PREFECT: _prefect, WORKER: _worker, MLFLOW: _mlflow}[name](stack)


def _prefect(stack: Stack) -> Start:
    # the database of the server that a command starts for itself, where earlier flow runs are
    home = stack.folder.parent / "prefect"
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    (port,) = free_ports(4200)
    return Start(
        ("-m", "prefect", "server", "start", "--host", HOST, "--port", str(port)),
        _PREFECT_ENVIRONMENT
        | {
            "PREFECT_HOME": str(home),
            "PREFECT_SERVER_API_AUTH_STRING": f"{USER}:{stack.password}",
            "PREFECT_SERVER_UI_API_URL": f"http://{HOST}:{port}/api",
        },
        port,
        f"http://{HOST}:{port}",
    )


def _worker(stack: Stack) -> Start:
    environment = dict(_PREFECT_ENVIRONMENT)
    for name in (PREFECT, MLFLOW, RAY):  # its flows use them
        environment |= stack.environment(name)
    return Start(
        # one run at a time: each takes the whole machine
        (
            *("-m", "prefect", "worker", "start", "--pool", POOL, "--type", "process"),
            *("--limit", "1", "--install-policy", "never"),
        ),
        environment,
    )


def _mlflow(stack: Stack) -> Start:
    # the files that commands use where no server runs: either shows what the other has written
    workspace = stack.folder.parent
    settings = stack.private("mlflow_auth.ini", _AUTH_INI.format(folder=stack.folder, user=USER))
    (port,) = free_ports(5000)
    return Start(
        (
            *("-m", "mlflow", "server", "--host", HOST, "--port", str(port), "--workers", "1"),
            *("--app-name", "basic-auth", "--uvicorn-opts", "--log-level warning"),
            *("--backend-store-uri", f"sqlite:///{workspace}/mlflow.db"),
            *("--default-artifact-root", (workspace / "mlartifacts").as_uri()),
        ),
        _MLFLOW_ENVIRONMENT
        | {
            "MLFLOW_AUTH_CONFIG_PATH": str(settings),
            "MLFLOW_AUTH_ADMIN_PASSWORD": stack.password,
            "MLFLOW_FLASK_SERVER_SECRET_KEY": stack.secret("mlflow_key"),
        },
        port,
        f"http://{HOST}:{port}",
    )


def _ray(stack: Stack, cpus: int) -> Start:
    port, dashboard, agent, client = free_ports(6379, 8265, 0, 0)
    # Ray's sockets need a short path; and in a folder of its own it does not become the cluster
    # that `auto` means for every program of this machine
    temporary = tempfile.mkdtemp(prefix="gan-train-ray-")  # nobody else may enter it
    return Start(
        (
            *("-m", "ray.scripts.scripts", "start", "--head", "--block"),
            *("--node-ip-address", HOST, "--port", str(port), "--num-cpus", str(cpus)),
            *("--include-dashboard", "true", "--dashboard-host", HOST),
            *("--dashboard-port", str(dashboard), "--dashboard-agent-listen-port", str(agent)),
            *("--ray-client-server-port", str(client)),
            # a folder in it, because Ray lets all users of the machine write to its folder
            *("--temp-dir", f"{temporary}/r", "--disable-usage-stats"),
        ),
        QUIET | LOOPBACK | _RAY_ENVIRONMENT | {"RAY_AUTH_TOKEN": stack.ray_token},
        port,
        f"http://{HOST}:{dashboard}",
        temporary,
    )


# ---- health ------------------------------------------------------------------------------------


def healthy(stack: Stack, name: str, service: Service) -> bool:
    """Whether a service runs and answers as it should."""
    if not service.alive:
        return False
    if name == WORKER:
        return _worker_polls(stack, service)
    page = {PREFECT: "/api/health", MLFLOW: "/health", RAY: "/api/gcs_healthz"}[name]
    return _ask(service.address, page) is not None


def _worker_polls(stack: Stack, worker: Service) -> bool:
    """Whether Prefect's server has heard of the worker since it was started, and lately."""
    server = stack.services.get(PREFECT)
    if server is None:
        return False
    login = base64.b64encode(f"{USER}:{stack.password}".encode()).decode()
    answer = _ask(
        server.address,
        f"/api/work_pools/{POOL}/workers/filter",
        "POST",
        {"Authorization": f"Basic {login}", "Content-Type": "application/json"},
    )
    since = datetime.fromisoformat(worker.since)
    return any(
        known["status"] == "ONLINE" and datetime.fromisoformat(known["last_heartbeat_time"]) > since
        for known in json.loads(answer or b"[]")
    )


def _ask(address: str, page: str, method: str = "GET", headers: Any = None) -> bytes | None:
    """What a server answers; None if it does not answer, or refuses."""
    body = b"{}" if method == "POST" else None
    host, _, port = address.removeprefix("http://").partition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=_TIMEOUT_S)
    try:
        connection.request(method, page, body, headers or {})
        answer = connection.getresponse()
        content = answer.read()
        return content if answer.status == http.client.OK else None
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()
