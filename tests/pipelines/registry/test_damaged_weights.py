"""Weights that were deleted, damaged or changed, on the disk or in MLflow, are not registered."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from gan_train.adversary import Clock
from gan_train.config import Config
from gan_train.errors import UserError
from gan_train.files.digests import sha256_of
from gan_train.files.tensors import load_tensors
from gan_train.nn.fingerprint import fingerprint
from gan_train.runs.ledger import Ledger
from pipelines.registry import versions
from pipelines.registry.tracking import connect
from tests.pipelines.registry_runs import (
    Run,
    config,
    index,
    logged_metrics,
    models_of,
    written_metrics,
)

pytestmark = pytest.mark.slow


def finished_run(settings: Config) -> tuple[Run, Path]:
    """A run with one checkpoint, and the path of its generator's weights."""
    run = Run(settings, index())
    folder = run.checkpoint(1000, 50.0)
    run.end(1000)
    return run, folder / "generator.safetensors"


def register(run: Run) -> versions.Registration:
    return versions.register_best(run.config, run.folder, run.index, {})


def _flipped(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


def test_weights_that_changed_in_mlflow_are_not_registered(workspace: Path) -> None:
    settings = config(workspace)
    run, _ = finished_run(settings)
    assert versions.ship(settings, run.folder, run.index, {})
    client = connect(settings)
    run_id = json.loads((run.folder / "mlflow.json").read_text())["run_id"]
    experiment = client.get_run(run_id).info.experiment_id
    (model,) = client.search_logged_models([experiment], f"source_run_id = '{run_id}'")
    there = Path(model.artifact_location.removeprefix("file://"))
    sent = there / "artifacts" / "generator" / "generator.safetensors"
    sent.write_bytes(_flipped(sent.read_bytes()))
    with pytest.raises(UserError, match="are not those that were sent"):
        register(run)
    assert client.search_model_versions() == []


def test_a_checkpoint_deleted_before_it_was_sent(workspace: Path) -> None:
    """Only the newest and the best are kept: the others may be gone when the server returns."""
    settings = config(workspace)
    run = Run(settings, index())
    shutil.rmtree(run.checkpoint(1000, 60.0))
    run.checkpoint(2000, 50.0)
    run.end(2000)
    done = register(run)
    client = connect(settings)
    assert logged_metrics(client, done.run_id) == written_metrics(run)
    assert client.get_model_version(done.model, "1").tags["images_seen"] == "2000"


@pytest.mark.fault(
    "a checkpoint damaged after it was scored, before MLflow had its weights",
    "the damaged weights are never sent or registered; trained again, they are",
)
def test_a_checkpoint_damaged_before_it_was_sent(workspace: Path) -> None:
    settings = config(workspace)
    run, weights = finished_run(settings)
    whole = weights.read_bytes()
    entry = {"averaged": fingerprint(load_tensors(weights))}
    Ledger(run.folder).checkpoint(Clock(1, 1000), entry)
    for harmed in (bytes(len(whole)), _flipped(whole)):
        weights.write_bytes(harmed)
        with pytest.raises(UserError, match="have not reached MLflow, and cannot be sent now"):
            register(run)
    weights.write_bytes(whole)
    done = register(run)
    client = connect(settings)
    assert logged_metrics(client, done.run_id) == written_metrics(run)
    assert models_of(client, done.run_id) == [("checkpoint-000000001000", "READY")]
    version = client.get_model_version(done.model, "1")
    assert version.tags["weights_sha256"] == sha256_of(weights)
    assert (versions.download(settings, "1") / weights.name).read_bytes() == whole


def test_damaged_weights_in_mlflow_are_replaced(workspace: Path) -> None:
    """An earlier version of the program sent them as they were."""
    settings = config(workspace)
    run, weights = finished_run(settings)
    whole = weights.read_bytes()
    weights.write_bytes(bytes(len(whole)))  # there is no ledger to tell
    assert versions.ship(settings, run.folder, run.index, {})
    weights.write_bytes(whole)
    assert register(run).version == 1
    assert (versions.download(settings, "1") / weights.name).read_bytes() == whole
