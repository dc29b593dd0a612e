"""A workspace with an empty MLflow database."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.registry.tracking import connect
from tests.pipelines.registry_runs import config
from tests.pipelines.registry_server import Server


@pytest.fixture(scope="module")
def blank_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow's tables take seconds to make: once, then copied."""
    folder = tmp_path_factory.mktemp("blank")
    connect(config(folder))
    return folder / "mlflow.db"


@pytest.fixture
def workspace(tmp_path: Path, blank_database: Path) -> Path:
    shutil.copy(blank_database, tmp_path / "mlflow.db")
    return tmp_path


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, blank_database: Path) -> Iterator[Server]:
    made = Server(tmp_path_factory.mktemp("server"))
    shutil.copy(blank_database, made.folder / "server.db")
    made.start()
    yield made
    made.kill()
