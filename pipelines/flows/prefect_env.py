"""Sets Prefect's environment for a command from the terminal: server, database, log levels.

Prefect reads its environment when it is first imported, so `prepare` is called before that.
"""

from __future__ import annotations

import atexit
import http.client
import importlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from gan_train.config import Config
from gan_train.errors import UserError
from pipelines.compute.cluster import THREAD

STARTUP_S = 120.0
"""The longest wait for the server, in seconds: a first start makes the database."""
SERVER_ALONE = {
    # nobody has written automations for a server that lives as long as one command
    "PREFECT_SERVER_SERVICES_TRIGGERS_ENABLED": "false",
}
"""Settings of the embedded server alone, where the user's environment does not set them."""


def prepare(config: Config, meanwhile: Callable[[], object] = lambda: None) -> None:
    """Set server, database and log levels, where the user's environment does not set them, and call
    `meanwhile`, beside the start of a server.

    Where no server is named, one is started on loopback until this process ends, with a password
    that this process and those it starts know. Its database
    stays in the workspace, so that `PREFECT_HOME=<workspace>/prefect prefect server start` shows
    all runs later.

    Raises UserError if the server does not start.
    """
    wanted = {
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        # a person at the terminal reads our own lines; the flow's log is in the UI
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
    }
    embedded = config.flow.server is None and "PREFECT_API_URL" not in os.environ
    home = Path(os.environ.get("PREFECT_HOME", config.workspace.absolute() / "prefect"))
    if config.flow.server is not None:
        os.environ["PREFECT_API_URL"] = config.flow.server
    if embedded:
        wanted["PREFECT_HOME"] = str(home)
    for name, value in wanted.items():
        os.environ.setdefault(name, value)
    if embedded:
        _start_server(home, meanwhile)
    else:
        meanwhile()


def _start_server(home: Path, meanwhile: Callable[[], object]) -> None:
    """Start a server that ends with this process, and have Prefect use it. Calls `meanwhile`, and
    returns once the server answers."""
    login = (
        f"gan-train:{secrets.token_urlsafe(24)}"  # other users of the machine reach loopback too
    )
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    log = home / "server.log"
    with socket.create_server(("127.0.0.1", 0)) as listening, log.open("wb") as output:
        port = listening.getsockname()[1]
        server = subprocess.Popen(
            [sys.executable, "-m", "pipelines.flows.prefect_server", str(listening.fileno())],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            pass_fds=[listening.fileno()],
            start_new_session=True,
            env=SERVER_ALONE | os.environ | {"PREFECT_SERVER_API_AUTH_STRING": login},
        )
    os.environ["PREFECT_API_URL"] = f"http://127.0.0.1:{port}/api"
    os.environ["PREFECT_API_AUTH_STRING"] = login
    # takes seconds, in which the server starts, and `meanwhile` waits for what it starts
    importing = threading.Thread(target=_import_flows, daemon=True, name=THREAD + "imports")
    importing.start()
    meanwhile()
    importing.join()
    # the socket listens already: the request waits in its queue until the server is up
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=STARTUP_S)
    try:
        connection.request("GET", "/api/health")
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        raise UserError(f"Prefect's server did not start ({error}); it said why in {log}") from None
    finally:
        connection.close()
    if status != http.client.OK:
        raise UserError(f"Prefect's server answers with status {status}; it said why in {log}")
    atexit.register(_stop, server)  # one that is not up yet ends when this process has ended


def _import_flows() -> None:
    # signals are for the main thread, which may hold them back
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGHUP})
    # What fails is raised where the command imports it. When it ends early, threads cannot import.
    with suppress(Exception):
        importlib.import_module("pipelines.flows.pipeline")


def _stop(server: subprocess.Popen[bytes]) -> None:
    assert server.stdin is not None
    server.stdin.close()
    try:
        server.wait(timeout=10)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()
    except KeyboardInterrupt:  # the user is in a hurry, and the server ends by itself
        pass
