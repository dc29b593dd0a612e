"""Makes a checkpoint's generator an MLflow logged model, in two steps.

`deliver` uploads every scored checkpoint: its weights (safetensors), the settings that build their
network, and tags. What was damaged on the disk by then is not sent; `with_weights` sends it once it
has been trained again. `complete` lets MLflow serve the one that is registered: it adds the code
that reads the weights (`gan_train` as installed at that time), the file that serves them (see
`model_interface.py`), a signature and an input example. Nothing is pickled. Every function may be
called again: a model is looked up before it is made, and the file `MLmodel`, without which MLflow
serves nothing, is written last.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gan_train
from gan_train.errors import UserError
from gan_train.files.digests import sha256_of
from gan_train.inference import Generator
from gan_train.runs.audit import GENERATOR, generator_damage
from pipelines.registry.model_interface import interface_of

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel

log = logging.getLogger(__name__)

FILES = GENERATOR
FOLDER = "artifacts/generator"
"""The folder of the `FILES` in a logged model, where MLflow looks for them when it serves it."""
MLMODEL = "MLmodel"
WEIGHTS_TAG = "weights_sha256"
_PACKAGES = ("mlflow", "torch", "numpy", "pillow", "pydantic", "safetensors")


def requirements() -> list[str]:
    """The packages that a process needs to load the model, in the versions installed here."""
    return [f"{name}=={version(name).partition('+')[0]}" for name in _PACKAGES]


def save(weights: Path, target: Path, model: Any) -> Generator:
    """Write the files of a served model for the generator in the folder `weights`, and check that
    it runs. `model` is the `mlflow.models.Model` that they belong to.

    Raises UserError when the folder does not hold a generator.
    """
    import mlflow.pyfunc

    generator = Generator.load(weights)
    interface = interface_of(generator)
    model.metadata = {
        "family": generator.family,
        "task": generator.task,
        "z_dim": generator.z_dim,
        "classes": list(generator.shape.classes),
    }
    with _quiet():
        mlflow.pyfunc.save_model(
            target,
            mlflow_model=model,
            python_model=str(interface.file),
            artifacts={"generator": str(weights)},
            code_paths=[str(Path(gan_train.__file__).parent)],
            input_example=[interface.example(generator)],
            pip_requirements=requirements(),
        )
    model.signature = interface.signature(generator)
    model.save(str(target / MLMODEL))
    for cache in target.rglob("__pycache__"):
        shutil.rmtree(cache)
    return generator


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide MLflow's remarks on type hints, which users of this project cannot act on."""
    logger = logging.getLogger("mlflow")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def name_of(event: Mapping[str, Any]) -> str:
    """The name of a checkpoint's logged model, such as `checkpoint-000000004000`."""
    return f"checkpoint-{event['nimg']:012d}"


def find(client: MlflowClient, experiment_id: str, run_id: str, name: str) -> LoggedModel | None:
    """The run's logged model with this name, or None."""
    found = client.search_logged_models(
        [experiment_id],
        filter_string=f"name = '{name}' AND source_run_id = '{run_id}'",
        max_results=1,
    )
    return found[0] if found else None


def deliver(
    client: MlflowClient,
    experiment_id: str,
    run_id: str,
    run_dir: Path,
    event: Mapping[str, Any],
) -> str:
    """Upload a scored checkpoint's weights to MLflow as a logged model; returns the model's id.

    If the checkpoint was deleted before it could be sent (only the newest and the best are kept),
    or was damaged meanwhile, the model has no weights and is marked as failed, but still gets its
    scores.
    """
    from mlflow.entities import LoggedModelOutput, LoggedModelStatus

    name = name_of(event)
    found = find(client, experiment_id, run_id, name) or client.create_logged_model(
        experiment_id,
        name=name,
        source_run_id=run_id,
        model_type="generator",
        params={"images_seen": str(event["nimg"])},
    )
    model_id = str(found.model_id)
    outputs = client.get_run(run_id).outputs
    if model_id not in [output.model_id for output in (outputs.model_outputs if outputs else [])]:
        client.log_outputs(run_id, [LoggedModelOutput(model_id, step=event["nimg"])])
    if found.status != LoggedModelStatus.PENDING:
        return model_id

    source = run_dir / event["path"]
    if damage := generator_damage(source):
        log.warning("%s cannot be sent (%s): scores alone in MLflow", source, damage)
        client.finalize_logged_model(model_id, LoggedModelStatus.FAILED)
    else:
        _send(client, model_id, source)
    return model_id


def with_weights(client: MlflowClient, found: LoggedModel, source: Path) -> LoggedModel:
    """The logged model of the checkpoint in `source` with its weights. They are sent now where
    MLflow has none or others: when it was their turn, they were deleted or damaged on the disk.

    Raises UserError when MLflow has none, and they are not there to be sent either.
    """
    known = found.tags.get(WEIGHTS_TAG)
    damage = generator_damage(source)
    if damage is None and sha256_of(source / FILES[1]) != known:
        _send(client, str(found.model_id), source)
        return client.get_logged_model(str(found.model_id))
    if known is None:
        raise UserError(
            f"the weights of {source} have not reached MLflow, and cannot be sent now ({damage}): "
            "bring the folder back from a copy, or train a new run"
        )
    return found


def deliver_import(client: MlflowClient, run_id: str, name: str, source: Path) -> LoggedModel:
    """Upload a generator that was not trained here to MLflow; returns its logged model, which
    MLflow can serve."""
    from mlflow.entities import LoggedModelOutput

    made = client.create_logged_model(
        client.get_run(run_id).info.experiment_id,
        name=name,
        source_run_id=run_id,
        model_type="generator",
        params={"images_seen": "0"},
    )
    client.log_outputs(run_id, [LoggedModelOutput(made.model_id, step=0)])
    _send(client, made.model_id, source)
    return complete(client, client.get_logged_model(made.model_id))


def _send(client: MlflowClient, model_id: str, source: Path) -> None:
    """Upload the weights of a logged model."""
    from mlflow.entities import LoggedModelStatus

    with tempfile.TemporaryDirectory() as folder:
        for name in FILES:  # copied first: the checkpoint may be deleted at any time
            shutil.copy2(source / name, folder)
        client.log_model_artifacts(model_id, folder, FOLDER)
        client.set_logged_model_tags(model_id, {WEIGHTS_TAG: sha256_of(Path(folder, FILES[1]))})
    client.finalize_logged_model(model_id, LoggedModelStatus.READY)


def complete(client: MlflowClient, found: LoggedModel) -> LoggedModel:
    """Add to a logged model that has its weights what MLflow needs to serve it; returns the model
    with the tags `family`, `task`, `z_dim` and `conditional`. A complete model stays as it is.

    Raises UserError when the weights are not those that were delivered.
    """
    from mlflow.models import Model

    model_id = str(found.model_id)
    there = client.list_logged_model_artifacts(model_id)
    if any(file.path == MLMODEL and file.file_size for file in there):
        return found
    with tempfile.TemporaryDirectory() as folder:
        weights, target = Path(folder, "generator"), Path(folder, "model")
        download(client.tracking_uri, found.artifact_location, weights)
        if sha256_of(weights / FILES[1]) != found.tags[WEIGHTS_TAG]:
            raise UserError(
                f"the weights of {found.name} in MLflow ({model_id}) are not those that were sent "
                "there (SHA-256 differs): they cannot be registered"
            )
        model = Model(
            artifact_path=found.artifact_location,
            model_uuid=model_id,
            run_id=found.source_run_id,
            model_id=model_id,
        )
        generator = save(weights, target, model)
        shutil.rmtree(target / FOLDER)  # these files were uploaded before
        whole = Path(folder, MLMODEL)
        (target / MLMODEL).rename(whole)
        client.log_model_artifacts(model_id, str(target))
        tags = {
            "family": generator.family,
            "task": generator.task,
            "z_dim": generator.z_dim,
            "conditional": generator.conditional,
        }
        client.set_logged_model_tags(model_id, tags)
        client.log_model_artifact(model_id, str(whole))
    return client.get_logged_model(model_id)


def download(tracking_uri: str, location: str, target: Path) -> None:
    """Put the generator's files of the model at `location` into a new folder `target`."""
    import mlflow.artifacts

    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        got = mlflow.artifacts.download_artifacts(
            artifact_uri=f"{location}/{FOLDER}",
            dst_path=folder,
            tracking_uri=tracking_uri,
            registry_uri=tracking_uri,
        )
        Path(got).rename(target)
