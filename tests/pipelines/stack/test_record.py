"""What is written of a stack, and how commands find it."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gan_train import recipes
from gan_train.config import ClusterConfig, Config
from pipelines.cli.remote import address_of
from pipelines.compute.cluster import on_this_machine
from pipelines.registry.tracking import tracking_uri
from pipelines.stack import discovery
from pipelines.stack.processes import MARK
from pipelines.stack.record import MLFLOW, PREFECT, RAY, Service, Stack

OURS = {
    "PREFECT_API_URL": "http://127.0.0.1:4200/api",
    "MLFLOW_TRACKING_URI": "http://127.0.0.1:5000",
    "RAY_ADDRESS": "127.0.0.1:6379",
}


@pytest.fixture
def stack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stack]:
    """A record whose three services are one process that sleeps."""
    for name in OURS:
        monkeypatch.delenv(name, raising=False)
    process = subprocess.Popen(
        [sys.executable, "-c", "print(flush=True); import time; time.sleep(600)"],
        stdout=subprocess.PIPE,
        env=os.environ | {MARK: "m"},
    )
    assert process.stdout is not None
    process.stdout.readline()
    stack = Stack.of(tmp_path)
    stack.make()
    ports = {PREFECT: 4200, MLFLOW: 5000, RAY: 6379}
    stack.keep(
        {
            name: Service(process.pid, "m", "2026-01-31T12:00:00+00:00", f"http://a:{port}", port)
            for name, port in ports.items()
        }
    )
    yield stack
    process.kill()
    process.communicate()


def config(stack: Stack, **changes: Any) -> Config:
    return recipes.change(recipes.load("demo"), {"workspace": str(stack.folder.parent), **changes})


def found() -> dict[str, str | None]:
    return {name: os.environ.get(name) for name in OURS}


def die(stack: Stack, name: str) -> None:
    """Give a service a number that belongs to another process."""
    services = stack.services
    kept = services[name]
    stack.keep(services | {name: Service(os.getpid(), "m", kept.since, kept.address, kept.port)})


def test_secrets_are_for_their_owner_alone_and_stay(tmp_path: Path) -> None:
    (tmp_path / "stack").mkdir(mode=0o755)
    stack = Stack.of(tmp_path)
    stack.make()
    password = stack.password
    assert len(password) >= 32 and password != stack.ray_token
    stack.private("mlflow_auth.ini", "a")
    stack.private("mlflow_auth.ini", "b")
    assert (stack.folder / "mlflow_auth.ini").read_text() == "b\n"
    assert stack.folder.stat().st_mode & 0o777 == 0o700
    modes = {path.name: path.stat().st_mode & 0o777 for path in stack.folder.iterdir()}
    assert modes == dict.fromkeys(("password", "ray_token", "mlflow_auth.ini"), 0o600)
    assert Stack.of(tmp_path).password == password


def test_a_record_is_read_as_it_was_kept(stack: Stack) -> None:
    again = Stack.of(stack.folder.parent)
    assert again.services == stack.services and all(s.alive for s in again.services.values())
    again.keep({})
    assert stack.services == {}


def test_a_shell_finds_what_commands_find(stack: Stack) -> None:
    stack.write_environment()
    assert (stack.folder / "env.sh").stat().st_mode & 0o777 == 0o600
    shown = subprocess.run(
        ["sh", "-c", '. "$1" && env', "sh", str(stack.folder / "env.sh")],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    for name in (PREFECT, MLFLOW, RAY):
        assert {f"{k}={v}" for k, v in stack.environment(name).items()} <= set(shown)


def test_a_command_uses_the_stack_of_its_workspace(stack: Stack) -> None:
    before = config(stack)
    assert tracking_uri(before).startswith("sqlite:///")
    discovery.use(before)
    assert found() == OURS
    assert os.environ["PREFECT_API_AUTH_STRING"] == f"admin:{stack.password}"
    assert os.environ["MLFLOW_TRACKING_PASSWORD"] == stack.password
    assert os.environ["RAY_AUTH_TOKEN"] == stack.ray_token
    assert tracking_uri(before) == OURS["MLFLOW_TRACKING_URI"]
    assert on_this_machine(before.cluster)
    assert not on_this_machine(ClusterConfig(address="10.0.0.1:6379"))
    assert discovery.prefect_page(before) == "http://a:4200"
    discovery.use(before)  # doing it again changes nothing
    assert found() == OURS


def test_without_a_stack_nothing_is_set(stack: Stack, tmp_path: Path) -> None:
    other = config(stack, workspace=str(tmp_path / "other"))
    discovery.use(other)
    assert found() == dict.fromkeys(OURS)
    assert discovery.prefect_page(other) is None


@pytest.mark.parametrize(
    ("key", "value", "left_out"),
    [
        ("flow.server", "http://10.0.0.1:4200/api", "PREFECT_API_URL"),
        ("registry.tracking_uri", "http://10.0.0.1:5000", "MLFLOW_TRACKING_URI"),
        ("cluster.address", "10.0.0.1:6379", "RAY_ADDRESS"),
        ("cluster.jobs", "http://10.0.0.1:8265", "RAY_ADDRESS"),
    ],
)
def test_what_the_configuration_names_comes_first(
    stack: Stack, key: str, value: str, left_out: str
) -> None:
    discovery.use(config(stack, **{key: value}))
    assert found() == OURS | {left_out: None}


@pytest.mark.parametrize("name", OURS)
def test_what_the_environment_names_comes_first(
    stack: Stack, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "elsewhere:1")
    discovery.use(config(stack))
    assert found() == OURS | {name: "elsewhere:1"}


def test_jobs_go_to_the_stack_unless_another_cluster_is_named(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_MODE", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.setenv(name, "")  # so that it is as before after the test
    workspace = stack.folder.parent
    assert address_of("http://head:8265", workspace) == "http://head:8265"
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert address_of(None, workspace) == "http://127.0.0.1:8265"
    assert not os.environ["RAY_AUTH_TOKEN"]
    monkeypatch.delenv("RAY_ADDRESS")
    assert address_of(None, workspace) == "http://a:6379"
    assert os.environ["RAY_AUTH_TOKEN"] == stack.ray_token
    monkeypatch.setenv("RAY_AUTH_TOKEN", "")
    assert address_of("http://a:6379/", workspace) == "http://a:6379"
    assert os.environ["RAY_AUTH_TOKEN"] == stack.ray_token


def test_a_dead_service_is_told_and_not_used(
    stack: Stack, caplog: pytest.LogCaptureFixture
) -> None:
    die(stack, MLFLOW)
    logging.getLogger("pipelines").propagate = True
    discovery.use(config(stack))
    assert found() == OURS | {"MLFLOW_TRACKING_URI": None}
    assert set(caplog.messages) == {
        f"mlflow of {stack.folder} has ended and is not used; `gan-train up` starts it again"
    }
