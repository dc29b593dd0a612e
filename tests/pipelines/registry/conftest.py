"""A workspace with an empty MLflow database."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pipelines.registry.tracking import connect
from tests.pipelines.registry_runs import config


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
