"""A Ray that a command starts for itself: its token, when it is begun, and whether it lives."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from gan_train.config import ClusterConfig
from pipelines.compute import cluster
from pipelines.compute.cluster import close_token


def test_others_may_not_read_the_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)
    folder = tmp_path / ".ray"
    for _ in range(2):
        close_token()
        assert folder.stat().st_mode & 0o777 == 0o700
        folder.chmod(0o755)  # as Ray makes it
    monkeypatch.setenv("RAY_AUTH_TOKEN", "x")
    close_token()
    assert folder.stat().st_mode & 0o777 == 0o755, "another token is used"


@pytest.mark.parametrize(
    ("settings", "begins"),
    [({}, True), ({"address": "head:6379"}, False), ({"jobs": "http://head:8265"}, False)],
)
def test_ray_is_begun_early_where_it_is_started_here(
    settings: dict[str, Any], begins: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered = []

    def connected(one: ClusterConfig) -> nullcontext[None]:
        entered.append(one)
        return nullcontext()

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(cluster, "connected", connected)
    wanted = ClusterConfig(**settings)
    with cluster.begun(wanted):
        assert entered == ([wanted] if begins else [])


def test_the_end_of_a_process_that_listens_is_noticed(tmp_path: Path) -> None:
    address = str(tmp_path / "raylet")
    assert not cluster._listens(address)
    code = "import socket, sys; s = socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]); s.listen()"
    with subprocess.Popen(
        [sys.executable, "-c", f"{code}; print(flush=True); input()", address],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert cluster._listens(address) and cluster._listens(address)
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert not cluster._listens(address), "although nobody has asked for its status yet"
