"""Which MLflow server is asked."""

from __future__ import annotations

from pathlib import Path

import pytest

from gan_train import recipes
from pipelines.registry.tracking import tracking_uri


def test_the_setting_comes_before_mlflows_variable_and_that_before_the_workspace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = recipes.load("demo", [f"workspace={tmp_path}"])
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert tracking_uri(config) == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://variable:5000")
    assert tracking_uri(config) == "http://variable:5000"
    named = recipes.change(config, {"registry.tracking_uri": "http://setting:5000"})
    assert tracking_uri(named) == "http://setting:5000"
