"""A checkpoint's generator as an MLflow model: files, signature, input example; no pickle.

The model carries its weights (safetensors), the code that reads them (`gan_train` as it was) and
the file that serves it (`model_interface.py`). Everything may be repeated: a model is looked up
before it is made.
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
WEIGHTS_TAG = "weights_sha256"
_PACKAGES = ("mlflow", "torch", "numpy", "pillow", "pydantic", "safetensors")


def requirements() -> list[str]:
    """What a process that loads the model must have, as it is installed here."""
    return [f"{name}=={version(name).partition('+')[0]}" for name in _PACKAGES]


def save(source: Path, target: Path, model: Any) -> Generator:
    """Write the files of an MLflow model for the generator in `source`, and see that it runs.

    `model` is the `mlflow.models.Model` that they belong to. Raises FileNotFoundError or UserError
    when `source` is gone.
    """
    import mlflow.pyfunc

    generator = Generator.load(source)
    interface = interface_of(generator)
    weights = target.with_name("generator")
    weights.mkdir()
    for name in FILES:
        shutil.copy2(source / name, weights / name)
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
    model.save(str(target / "MLmodel"))
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
    """The run's logged model of that name."""
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
    """Bring a scored checkpoint to MLflow as a logged model; returns its id.

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
        _send(client, found, source, run_id)
    except (FileNotFoundError, UserError):
        if (source / FILES[0]).exists():
            raise
        log.warning("%s was deleted before it could be sent: scores alone in MLflow", source)
        client.finalize_logged_model(model_id, LoggedModelStatus.FAILED)
    return model_id


def deliver_import(client: MlflowClient, run_id: str, name: str, source: Path) -> LoggedModel:
    """Bring a generator that was not trained here to MLflow; returns its logged model."""
    from mlflow.entities import LoggedModelOutput

    made = client.create_logged_model(
        client.get_run(run_id).info.experiment_id,
        name=name,
        source_run_id=run_id,
        model_type="generator",
        params={"images_seen": "0"},
    )
    client.log_outputs(run_id, [LoggedModelOutput(made.model_id, step=0)])
    _send(client, made, source, run_id)
    return client.get_logged_model(made.model_id)


def _send(client: MlflowClient, found: LoggedModel, source: Path, run_id: str) -> None:
    """Upload the files of a logged model that has none yet, and say what they are."""
    from mlflow.entities import LoggedModelStatus
    from mlflow.models import Model

    model_id = str(found.model_id)
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder, "model")
        model = Model(
            artifact_path=found.artifact_location,
            model_uuid=model_id,
            run_id=run_id,
            model_id=model_id,
        )
        generator = save(source, target, model)
        tags = {
            WEIGHTS_TAG: sha256_of(target / "artifacts" / "generator" / FILES[1]),
            "family": generator.family,
            "task": generator.task,
            "z_dim": generator.z_dim,
            "conditional": generator.conditional,
        }
        client.set_logged_model_tags(model_id, tags)
        client.log_model_artifacts(model_id, str(target))
    client.finalize_logged_model(model_id, LoggedModelStatus.READY)
