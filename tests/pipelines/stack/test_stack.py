"""The real servers: started, asked, used by a run, and ended, as a user does it."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from gan_train import recipes
from pipelines.stack.processes import MARK, is_marked, marked
from pipelines.stack.record import MLFLOW, PREFECT, RAY, Stack
from tests.training import tiny_config

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def gan_train(folder: Path, *arguments: str, status: int = 0) -> str:
    """What a command prints; it names no server, and must end with `status`."""
    done = subprocess.run(
        [sys.executable, "-m", "pipelines.cli.main", *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout


def ask(url: str, headers: dict[str, str], content: Any = None) -> Any:
    data = None if content is None else json.dumps(content).encode()
    request = urllib.request.Request(
        url, data, {"Content-Type": "application/json"} | headers, method="POST" if data else "GET"
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def test_up_a_run_and_down(tiny_source: Path, tmp_path: Path) -> None:
    stack = Stack.of(tmp_path / "runs")
    other = subprocess.Popen(["sleep", "600"], env=os.environ | {MARK: "of another stack"})
    try:
        gan_train(tmp_path, "up", "--cpus", "2")
        services = stack.services
        assert "healthy" in gan_train(tmp_path, "status")
        everything_asks_who_is_there(stack)
        a_run_uses_all_of_it(stack, tiny_source, tmp_path)
        nothing_listens_beyond_this_machine(stack)
        secrets_are_where_they_belong(stack, tmp_path)
        a_night_uses_it_too(stack, tmp_path)

        os.kill(services[MLFLOW].pid, 9)
        while services[MLFLOW].alive:
            time.sleep(0.1)
        rows = gan_train(tmp_path, "status", status=1).splitlines()
        assert [row.split()[:2] for row in rows[1:5]] == [
            ["prefect", "healthy"],
            ["worker", "healthy"],
            ["mlflow", "ended"],
            ["ray", "healthy"],
        ]
        # where its server is away, the registry is read from the file that the server has used
        assert "champion" in gan_train(tmp_path, "versions", "tiny.yaml")
    finally:
        gan_train(tmp_path, "down", "--force")
        other_lives = is_marked(other.pid, "of another stack")
        other.kill()
        other.wait()
    assert other_lives
    assert not [name for name, service in services.items() if marked(service.mark)]
    assert not Path(services[RAY].temporary).exists()
    gan_train(tmp_path, "status", status=3)


def logins(stack: Stack) -> dict[str, dict[str, str]]:
    basic = base64.b64encode(f"admin:{stack.password}".encode()).decode()
    return {
        PREFECT: {"Authorization": f"Basic {basic}"},
        MLFLOW: {"Authorization": f"Basic {basic}"},
        RAY: {"Authorization": f"Bearer {stack.ray_token}"},
    }


def everything_asks_who_is_there(stack: Stack) -> None:
    pages = {PREFECT: "/api/admin/version", MLFLOW: "/api/2.0/mlflow/users/get?username=admin"}
    for name, page in (pages | {RAY: "/api/version"}).items():
        url = stack.services[name].address + page
        with pytest.raises(urllib.error.HTTPError) as refused:
            ask(url, {})
        with refused.value as answer:
            assert answer.code == 401
        assert ask(url, logins(stack)[name])


def listening(pid: int) -> set[str]:
    """The addresses, in the kernel's form, on which a process listens."""
    tables = [line.split() for name in ("tcp", "tcp6") for line in table(pid, name)]
    sockets = {f"socket:[{row[9]}]": row[1] for row in tables if row[3] == "0A"}
    opened = (str(handle.readlink()) for handle in handles(pid))
    return {sockets[name].partition(":")[0] for name in opened if name in sockets}


def table(pid: int, name: str) -> list[str]:
    return Path(f"/proc/{pid}/net/{name}").read_text().splitlines()[1:]


def handles(pid: int) -> list[Path]:
    return [*Path(f"/proc/{pid}/fd").iterdir()]


LOOPBACK = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}
"""127.0.0.1, as itself and within IPv6, and ::1."""


def nothing_listens_beyond_this_machine(stack: Stack) -> None:
    """No process of the stack, Ray's agents and idle workers included. Those that train let PyTorch
    listen on all interfaces; they have ended by now."""
    found: dict[str, set[str]] = {}
    for name, service in stack.services.items():
        for pid in marked(service.mark):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
                found.setdefault(name, set()).update(listening(pid))
    assert all(found[name] for name in (PREFECT, MLFLOW, RAY))
    assert set().union(*found.values()) <= LOOPBACK, found


def secrets_are_where_they_belong(stack: Stack, folder: Path) -> None:
    """In files that nobody else may read, and in no log, database or artifact."""
    assert stack.folder.stat().st_mode & 0o777 == 0o700
    assert (stack.folder.parent / "prefect").stat().st_mode & 0o777 == 0o700
    temporary = Path(stack.services[RAY].temporary)
    assert temporary.stat().st_mode & 0o777 == 0o700
    basic = logins(stack)[PREFECT]["Authorization"].partition(" ")[2]
    secrets = [s.encode() for s in (stack.password, stack.ray_token, stack.secret("mlflow_key"))]
    holding = set()
    for root in (folder, temporary):
        for path in root.rglob("*"):
            if path.is_file() and any(s in path.read_bytes() for s in (*secrets, basic.encode())):
                holding.add(path.name)
                assert path.stat().st_mode & 0o777 == 0o600, path
    assert holding == {"password", "ray_token", "mlflow_key", "env.sh"}


def a_run_uses_all_of_it(stack: Stack, source: Path, folder: Path) -> None:
    config = tiny_config(
        *(source, Path("runs")),
        evaluate__metrics=["frechet"],
        evaluate__batch=8,
        cluster__workers=2,
    )
    (folder / "tiny.yaml").write_text(recipes.dump(config))
    shown = gan_train(folder, "run", "tiny.yaml")
    (run,) = [path.name for path in (folder / "runs" / "train").iterdir()]
    address = {name: service.address for name, service in stack.services.items()}
    login = logins(stack)
    assert f"{address[MLFLOW]}/#/models/progan-tiny/versions/1" in shown
    assert address[PREFECT] in shown

    flows = ask(f"{address[PREFECT]}/api/flow_runs/filter", login[PREFECT], {})
    assert {(flow["name"], flow["state_name"]) for flow in flows} == {
        (f"{name}-tiny", "Completed") for name in ("run", "shard", "train", "promote")
    }
    found = ask(
        f"{address[MLFLOW]}/api/2.0/mlflow/runs/search", login[MLFLOW], {"experiment_ids": ["1"]}
    )
    (recorded,) = found["runs"]
    assert (recorded["info"]["run_name"], recorded["info"]["status"]) == (run, "FINISHED")
    (job,) = ask(f"{address[RAY]}/api/jobs/", login[RAY])
    tags = {tag["key"]: tag["value"] for tag in recorded["data"]["tags"]}
    assert tags["ray.job_id"] == job["job_id"]


def a_night_uses_it_too(stack: Stack, folder: Path) -> None:
    """Only the stack's MLflow knows the version that makes this night one without news."""
    shown = gan_train(folder, "nightly", "tiny.yaml")
    assert "nothing new: version 1 was trained on these 24 images" in shown
    prefect = stack.services[PREFECT].address
    wanted = {"flow_runs": {"name": {"any_": ["nightly-tiny"]}}}
    (night,) = ask(f"{prefect}/api/flow_runs/filter", logins(stack)[PREFECT], wanted)
    assert (night["state_type"], night["state_name"]) == ("COMPLETED", "Nothing new")
    assert len(ask(f"{stack.services[RAY].address}/api/jobs/", logins(stack)[RAY])) == 2
