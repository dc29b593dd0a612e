"""The embedded Prefect server: it ends with its command, and says why where it does not start."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import urlparse

import pytest

PREPARE = """
import os, sys, time
from gan_train import recipes
from pipelines.flows import prefect_env
prefect_env.prepare(recipes.load("demo", [f"workspace={sys.argv[1]}"]))
print(os.environ["PREFECT_API_URL"], flush=True)
time.sleep(600)
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
