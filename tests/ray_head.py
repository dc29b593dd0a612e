"""A real Ray cluster of one node for tests, with a dashboard that takes jobs."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from pipelines.compute import cluster

RAY = str(Path(sys.executable).with_name("ray"))


def free_ports(count: int) -> list[str]:
    """TCP ports that nobody listens on, all different."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [str(one.getsockname()[1]) for one in sockets]


@contextmanager
def head() -> Iterator[str]:
    """The dashboard's address of a cluster of one node, on loopback, with token authentication."""
    port, board, agent, client = free_ports(4)
    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # sockets need a short path
    process = subprocess.Popen(
        [
            *(RAY, "start", "--head", "--block", "--disable-usage-stats", "--num-cpus", "4"),
            *("--port", port, "--dashboard-host", "127.0.0.1", "--dashboard-port", board),
            *("--dashboard-agent-listen-port", agent, "--ray-client-server-port", client),
            *("--temp-dir", folder),
        ],
        env=os.environ | cluster.environment(local=True),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    address = f"http://127.0.0.1:{board}"
    try:
        deadline = time.monotonic() + 120
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", int(board))) == 0:
                    break
            assert process.poll() is None and time.monotonic() < deadline, "no dashboard"
            time.sleep(0.5)
        yield address
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # its own session, so no other Ray's processes
        process.wait(30)
        shutil.rmtree(folder, ignore_errors=True)
