"""A whole run where MLflow and Prefect keep their records in PostgreSQL, with the commands, the
settings and the databases of infra/compose/compose.yaml."""

from __future__ import annotations

import os
import re
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psycopg2
import pytest
import yaml

from gan_train import recipes
from pipelines.registry import versions
from pipelines.stack.services import free_ports
from tests import postgres
from tests.training import tiny_config

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.postgres]

ROOT = Path(__file__).parents[3]
COMPOSE = yaml.safe_load((ROOT / "infra/compose/compose.yaml").read_text(encoding="utf-8"))
STARTUP_S = 180.0


class Site:
    """The servers of the compose file, on loopback and on the PostgreSQL at `address`."""

    def __init__(self, folder: Path, address: str, password: str) -> None:
        self.folder, self.address, self.password = folder, address, password
        self._secrets = {"POSTGRES_PASSWORD": password}

    def expanded(self, text: str) -> str:
        """The text with its variables filled in, and the address of this PostgreSQL."""

        def value(found: re.Match[str]) -> str:
            return self._secrets.setdefault(found[1], secrets.token_hex(16))

        return re.sub(r"\$\{(\w+)[^}]*\}", value, text).replace("@postgres/", f"@{self.address}/")

    def secret(self, name: str) -> str:
        return self._secrets[name]

    @contextmanager
    def service(self, name: str, health: str, **changed: str) -> Iterator[str]:
        """Start a service with some options of its command changed; yields its address."""
        (port,) = free_ports(0)
        changed |= {"host": "127.0.0.1", "port": str(port)}
        command = []
        for word in COMPOSE["services"][name]["command"]:
            option, given, value = word.partition("=")
            new = changed.get(option.removeprefix("--").replace("-", "_"), value)
            command.append(f"{option}{given}{new}")
        environment = COMPOSE["services"][name]["environment"]
        with (self.folder / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", *command],
                stdout=log,
                stderr=log,
                env=os.environ
                | {key: self.expanded(value) for key, value in environment.items()}
                | {"MLFLOW_AUTH_CONFIG_PATH": str(self.folder / "auth.ini")}
                | {"PREFECT_HOME": str(self.folder / "prefect")},
                start_new_session=True,
            )
        try:
            deadline = time.monotonic() + STARTUP_S
            while not _answers(f"http://127.0.0.1:{port}{health}"):
                told = (self.folder / f"{name}.log").read_text()[-3000:]
                assert process.poll() is None and time.monotonic() < deadline, told
                time.sleep(0.3)
            yield f"http://127.0.0.1:{port}"
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def ask(self, database: str, query: str) -> Any:
        """The rows that a database answers with."""
        url = f"postgresql://{postgres.USER}:{self.password}@{self.address}/{database}"
        connection = psycopg2.connect(url)
        try:
            with connection.cursor() as cursor:
                cursor.execute(query)
                return cursor.fetchall()
        finally:
            connection.close()


def _answers(address: str) -> bool:
    try:
        return httpx.get(address, timeout=5).status_code == 200
    except httpx.TransportError:
        return False


def test_a_run_on_postgresql(
    tiny_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with postgres.server(ROOT / "infra/compose/databases.sql") as (address, password):
        site = Site(tmp_path, address, password)
        auth = COMPOSE["configs"]["mlflow-auth"]["content"]
        (tmp_path / "auth.ini").write_text(site.expanded(auth))
        artifacts = (tmp_path / "artifacts").as_uri()
        hosts = "127.0.0.1:*"
        with (
            site.service(
                "mlflow", "/health", artifacts_destination=artifacts, allowed_hosts=hosts
            ) as mlflow,
            site.service("prefect", "/api/health") as prefect,
        ):
            login = site.secret("PREFECT_ADMIN_PASSWORD")
            monkeypatch.setenv("PREFECT_API_AUTH_STRING", f"admin:{login}")
            monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
            monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", site.secret("MLFLOW_ADMIN_PASSWORD"))
            config = tiny_config(
                tiny_source,
                tmp_path / "workspace",
                registry__tracking_uri=mlflow,
                flow__server=f"{prefect}/api",
                evaluate__metrics=["frechet"],
                evaluate__batch=8,
            )
            recipe = tmp_path / "tiny.yaml"
            recipe.write_text(recipes.dump(config), encoding="utf-8")
            told = {
                word: subprocess.run(
                    [sys.executable, "-m", "pipelines.cli.main", word, str(recipe)],
                    capture_output=True,
                    text=True,
                    cwd=ROOT,
                    check=False,
                )
                for word in ("run", "versions")
            }
            for done in told.values():
                assert done.returncode == 0, done.stdout + done.stderr
            assert "champion" in told["run"].stdout
            assert "champion" in told["versions"].stdout
            assert versions.download(config, "champion").is_dir()
        assert site.ask("mlflow", "SELECT alias, version FROM registered_model_aliases") == [
            ("champion", 1)
        ]
        assert site.ask("mlflow", "SELECT status FROM runs") == [("FINISHED",)]
        states = dict(site.ask("prefect", "SELECT name, state_type FROM flow_run"))
        assert states and set(states.values()) == {"COMPLETED"}
