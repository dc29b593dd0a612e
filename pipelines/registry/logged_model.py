"""A checkpoint's generator as an MLflow logged model, in two steps.

`deliver` brings every scored checkpoint: its weights (safetensors), how to build the network for
them, and tags. `complete` makes a whole served model of the one that is registered: it adds the
code that reads the weights (`gan_train` as it is then), the file that serves them
(`model_interface.py`), a signature and an input example. Nothing is pickled. Everything may be
repeated: a model is looked up before it is made, and `MLmodel`, the file that makes it whole, is
written last.
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
from pipelines.registry.model_interface import interface_of

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel

log = logging.getLogger(__name__)

FILES = ("generator.json", "generator.safetensors")
FOLDER = "artifacts/generator"
"""Where these files are, below a logged model: where MLflow looks for them in a served model."""
MLMODEL = "MLmodel"
WEIGHTS_TAG = "weights_sha256"
_PACKAGES = ("mlflow", "torch", "numpy", "pillow", "pydantic", "safetensors")


def requirements() -> list[str]:
    """What a process that loads the model must have, as it is installed here."""
    return [f"{name}=={version(name).partition('+')[0]}" for name in _PACKAGES]


def save(weights: Path, target: Path, model: Any) -> Generator:
    """Write the files of a served model for the generator in the folder `weights`, and see that it
    runs. `model` is the `mlflow.models.Model` that they belong to.

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
    """Without MLflow's remarks on type hints, which are not for users of this project."""
    logger = logging.getLogger("mlflow")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def name_of(event: Mapping[str, Any]) -> str:
    """What a checkpoint's logged model is called: `checkpoint-000000004000`."""
    return f"checkpoint-{event['nimg']:012d}"


def find(client: MlflowClient, experiment_id: str, run_id: str, name: str) -> LoggedModel | None:
    """The run's logged model of that name; None where there is none."""
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
    """Bring a scored checkpoint's weights to MLflow as a logged model; returns its id.

    If its files were deleted before they could be sent (only the newest and the best are kept),
    the model stands without them, marked as failed, and still carries its scores.
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
    try:
        _send(client, found, source)
    except FileNotFoundError:
        if (source / FILES[0]).exists():
            raise
        log.warning("%s was deleted before it could be sent: scores alone in MLflow", source)
        client.finalize_logged_model(model_id, LoggedModelStatus.FAILED)
    return model_id


def deliver_import(client: MlflowClient, run_id: str, name: str, source: Path) -> LoggedModel:
    """Bring a generator that was not trained here to MLflow; returns its logged model, served and
    all."""
    from mlflow.entities import LoggedModelOutput

    made = client.create_logged_model(
        client.get_run(run_id).info.experiment_id,
        name=name,
        source_run_id=run_id,
        model_type="generator",
        params={"images_seen": "0"},
    )
    client.log_outputs(run_id, [LoggedModelOutput(made.model_id, step=0)])
    _send(client, made, source)
    return complete(client, client.get_logged_model(made.model_id))


def _send(client: MlflowClient, found: LoggedModel, source: Path) -> None:
    """Upload the weights of a logged model that has none yet."""
    from mlflow.entities import LoggedModelStatus

    model_id = str(found.model_id)
    with tempfile.TemporaryDirectory() as folder:
        for name in FILES:  # copied first: pruning may delete the checkpoint at any moment
            shutil.copy2(source / name, folder)
        client.log_model_artifacts(model_id, folder, FOLDER)
        client.set_logged_model_tags(model_id, {WEIGHTS_TAG: sha256_of(Path(folder, FILES[1]))})
    client.finalize_logged_model(model_id, LoggedModelStatus.READY)


def complete(client: MlflowClient, found: LoggedModel) -> LoggedModel:
    """Add to a logged model, which has its weights, all that MLflow needs to serve it; returns it
    with the tags `family`, `task`, `z_dim` and `conditional`. One that is whole stays as it is.

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
        shutil.rmtree(target / FOLDER)  # there already
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
