"""A real PostgreSQL server for tests, where Debian's package or another `postgres` is installed."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

STARTUP_S = 60.0
USER = "gan_train"


def programs() -> Path | None:
    """The folder of PostgreSQL's programs; Debian keeps those of a server off the PATH."""
    found = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/postgres")]
    on_path = shutil.which("postgres")
    return max(found, default=Path(on_path).parent if on_path else None)


@contextmanager
def server(databases: Path) -> Iterator[tuple[str, str]]:
    """A server on loopback in a folder of its own, in which the SQL of `databases` was run; yields
    its `host:port` and the password of USER."""
    where = programs()
    assert where is not None
    folder, password = Path(tempfile.mkdtemp(prefix="postgres-", dir="/tmp")), secrets.token_hex(16)
    with socket.create_server(("127.0.0.1", 0)) as found:
        port = str(found.getsockname()[1])
    options: dict[str, Any] = {"cwd": folder, "stdout": subprocess.DEVNULL}
    (folder / "password").write_text(password)
    if os.geteuid() == 0:  # PostgreSQL refuses to run as root
        options |= {"user": "postgres", "group": "postgres", "extra_groups": []}
        for path in (folder, folder / "password"):
            shutil.chown(path, "postgres", "postgres")
    data = str(folder / "data")
    subprocess.run(
        [
            *(where / "initdb", "--pgdata", data, "--username", USER, "--auth", "scram-sha-256"),
            *("--pwfile", "password", "--encoding", "UTF8", "--no-locale", "--no-sync"),
        ],
        check=True,
        **options,
    )
    process = subprocess.Popen(
        [
            *(where / "postgres", "-D", data, "-p", port, "-c", "listen_addresses=127.0.0.1"),
            *("-c", "unix_socket_directories=", "-c", "fsync=off"),
        ],
        stderr=subprocess.DEVNULL,
        **options,
    )
    client = ["--host", "127.0.0.1", "--port", port, "--username", USER, "--dbname", "postgres"]
    try:
        deadline = time.monotonic() + STARTUP_S
        while subprocess.run(
            [where / "pg_isready", *client, "--quiet"], check=False, **options
        ).returncode:
            assert process.poll() is None and time.monotonic() < deadline, "no PostgreSQL"
            time.sleep(0.1)
        subprocess.run(
            [where / "psql", *client, "--quiet", "--set", "ON_ERROR_STOP=1"],
            input=databases.read_bytes(),
            env=os.environ | {"PGPASSWORD": password},
            check=True,
            **options,
        )
        yield f"127.0.0.1:{port}", password
    finally:
        process.kill()
        process.wait()
        shutil.rmtree(folder)
