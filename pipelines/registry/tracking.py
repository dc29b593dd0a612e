"""Records a training as an MLflow run: says what each event of the log becomes in MLflow.

Every method may be repeated without effect. That makes delivery exactly-once, although events are
sent at least once (`shipping.py`): metrics are unique in MLflow by key, time, step and value; files
overwrite their own path; run and logged models are looked up before they are made. mlflow is
imported inside functions: the import takes seconds and reads the environment set in `connect`.
"""

from __future__ import annotations

import json
import logging
import os
import re
import tempfile
import uuid
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from gan_train.config import Config
from gan_train.data.index import Index
from gan_train.errors import UserError
from gan_train.images.origin import kept
from gan_train.runs.events import Event, read_events, read_with_offsets
from pipelines.registry import logged_model, run_table
from pipelines.registry.provenance import environment_tags, source_tags
from pipelines.registry.spool import Cursor

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Run

log = logging.getLogger(__name__)

KEY_TAG = "gan_train.key"
ABANDONED_TAG = "gan_train.abandoned"
"""The tag of a run that was closed because its events were abandoned: from how many images on."""
PRECISION_TAG = "precision"
"""The tag of a run that says in which format of numbers it is trained, where the recipe says
`auto`."""
DIAGNOSIS_TAG = "diagnosis"
"""The tag of a run that names what its training has, or says `healthy`."""
DEVICE_TAG = "device"
"""The tag of a run that names the processor or GPU that it began on."""
FOLLOWED_TAG = "gan_train.followed_by"
FOLLOWS_TAG = "gan_train.follows"
_METRICS_PER_BATCH = 1000  # MLflow's limits
_PARAMS_PER_BATCH = 100
_PARAM_CHARS = 6000
_TAG_CHARS = 8000
_DIGEST_CHARS = 36
_QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "1",
    "GIT_PYTHON_REFRESH": "quiet",
    # weights are safetensors; nothing that MLflow loads here may be a pickle
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    # an absent server is noticed in seconds, not after a minute: the spool is the better retry
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
}


def server(config: Config) -> str | None:
    """The configured server, else that of MLflow's own variable; None if there is none."""
    return config.registry.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or None


def tracking_uri(config: Config) -> str:
    """The server, or the SQLite file in the workspace."""
    return server(config) or f"sqlite:///{config.workspace.absolute()}/mlflow.db"


def connect(config: Config) -> MlflowClient:
    """A client of the configured server; sets MLflow's environment where the user has not."""
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    uri = tracking_uri(config)
    if server(config) is None:
        config.workspace.mkdir(parents=True, exist_ok=True)
    # these packages warn about their own code, which nobody here can mend
    warnings.filterwarnings("ignore", module=r"(mlflow|sqlalchemy|alembic)\b")
    import mlflow.pyfunc
    import mlflow.tracking

    # a page for each new database, and a line for each version
    for noisy in ("alembic", "mlflow.store.db.utils", "mlflow.store.model_registry"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    return mlflow.tracking.MlflowClient(tracking_uri=uri, registry_uri=uri)


def exists(config: Config) -> bool:
    """Whether there is a registry to read: a server, or a database in the workspace."""
    return server(config) is not None or (config.workspace / "mlflow.db").exists()


def connect_to_read(config: Config) -> MlflowClient:
    """A client that makes no database. Raises UserError where nothing was ever registered."""
    if not exists(config):
        raise UserError(
            f"nothing is registered in {config.workspace}: it has no mlflow.db. `gan-train run` "
            "registers what it trains; another registry is named by registry.tracking_uri"
        )
    return connect(config)


def failures() -> tuple[type[Exception], ...]:
    """The exceptions that the client raises when the server is away or refuses what it is sent."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    return MlflowException, SQLAlchemyError, OSError  # requests' exceptions are OSErrors


def is_missing(error: Exception) -> bool:
    """Whether the server said that it has no such thing."""
    return getattr(error, "error_code", None) == "RESOURCE_DOES_NOT_EXIST"


@contextmanager
def existing_allowed() -> Iterator[None]:
    """Let something be made under a name that may be taken already: then it stays as it is."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


# ---- the run -----------------------------------------------------------------------------------


def flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """The dotted keys of a configuration, and its values as text."""
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + str(key), "" if value is None else str(value)


def shorten(text: str, limit: int) -> str:
    """The text, cut to `limit` characters; an ellipsis shows the cut."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def dataset_name(config: Config) -> str:
    """The name of the data set in MLflow, which is that of its source."""
    return Path(config.data.source).name


def experiment_of(client: MlflowClient, config: Config) -> str:
    """The id of the experiment, which is made when it is missing. Local artifacts live in the
    workspace."""
    from mlflow.exceptions import MlflowException

    name = config.registry.experiment
    local = (config.workspace.absolute() / "mlartifacts").as_uri()
    for attempt in range(2):
        if found := client.get_experiment_by_name(name):
            # a kind that a person chose stays
            for tag, value in (run_table.KIND | found.tags | run_table.VIEW).items():
                if found.tags.get(tag) != value:
                    client.set_experiment_tag(found.experiment_id, tag, value)
            return str(found.experiment_id)
        try:
            tags = run_table.KIND | run_table.VIEW
            location = local if server(config) is None else None
            return str(client.create_experiment(name, location, tags))
        except MlflowException:  # another run has just made it
            if attempt:
                raise
    raise AssertionError("unreachable")


class Tracking:
    """The MLflow run that a cursor belongs to: found by its id or key, or made."""

    def __init__(
        self,
        config: Config,
        run_dir: Path,
        index: Index,
        ids: Mapping[str, str],
        cursor: Cursor,
    ) -> None:
        self.client, self.config, self.run_dir = connect(config), config, run_dir
        self.index, self.ids = index, ids
        if cursor.run_id is None:
            run = self._find(cursor.key)
            if run is None and cursor.lost and (run := self._find_by_log()) is not None:
                self.client.set_tag(run.info.run_id, KEY_TAG, cursor.key)
            run = run or self._create(cursor)
            if cursor.follows is not None:
                self.client.set_tag(cursor.follows, FOLLOWED_TAG, run.info.run_id)
        else:
            run = self.client.get_run(cursor.run_id)
        self.run_id: str = run.info.run_id
        self.experiment_id: str = run.info.experiment_id
        self.status: str = run.info.status
        self._describe(run)

    def set_status(self, status: str, time_ms: int | None = None) -> None:
        """Set the status: `RUNNING`, or how training ended: `FINISHED`, `FAILED`, `KILLED`."""
        if status == self.status:
            return
        if status == "RUNNING":
            self.client.update_run(self.run_id, status)
        else:
            self.client.set_terminated(self.run_id, status, time_ms)
        self.status = status

    def abandon(self, nimg: int) -> None:
        """Close the run, because its events were abandoned from `nimg` images on."""
        self.client.set_tag(self.run_id, ABANDONED_TAG, f"from {nimg} images on")
        self.client.set_terminated(self.run_id, "KILLED")

    def _find(self, key: str) -> Run | None:
        experiment = experiment_of(self.client, self.config)
        runs = self.client.search_runs([experiment], f"tags.`{KEY_TAG}` = '{key}'", max_results=1)
        return runs[0] if runs else None

    def _find_by_log(self) -> Run | None:
        """The run that has this folder's name, and began when its log did."""
        first = next(read_with_offsets(self.run_dir), None)
        if first is None:
            return None
        experiment = experiment_of(self.client, self.config)
        named = f"attributes.run_name = '{self.run_dir.name}'"
        began = f"attributes.start_time = {first[0]['time_ms']}"
        found = self.client.search_runs([experiment], f"{named} AND {began}")
        return next((run for run in found if ABANDONED_TAG not in run.data.tags), None)

    def _create(self, cursor: Cursor) -> Run:
        tags = {
            KEY_TAG: cursor.key,
            "mlflow.source.name": "gan-train",
            "mlflow.source.type": "LOCAL",
            "recipe": self.config.name,
            "family": self.config.family.name,
            "data_hash": self.index.content_hash,
            **source_tags(),
        }
        if cursor.follows is not None:
            tags[FOLLOWS_TAG] = cursor.follows
        experiment = experiment_of(self.client, self.config)
        first = next(read_with_offsets(self.run_dir), None)  # the log may be older than this run
        return self.client.create_run(
            experiment,
            start_time=first[0]["time_ms"] if first else None,
            tags=tags,
            run_name=self.run_dir.name,
        )

    def _describe(self, run: Run) -> None:
        """Log parameters, ids and data set. A parameter keeps its first value in MLflow, so a
        setting that a resumption has changed becomes a tag `resumed.<key>`."""
        from mlflow.entities import Dataset, DatasetInput, InputTag, Param, RunTag

        wanted = {
            key[:250]: shorten(value, _PARAM_CHARS)
            for key, value in flatten(self.config.model_dump(mode="json"))
        }
        stored = run.data.params
        fresh = [Param(k, v) for k, v in wanted.items() if k not in stored]
        if fresh:
            self.client.log_dict(self.run_id, self.config.model_dump(mode="json"), "config.json")
            data = Dataset(
                name=dataset_name(self.config),
                digest=self.index.content_hash[:_DIGEST_CHARS],
                source_type="local",
                source=json.dumps({"uri": self.config.data.source}),
                profile=json.dumps(
                    {
                        "num_rows": self.index.samples,
                        "class_counts": dict(
                            zip(self.index.classes, self.index.class_counts, strict=True)
                        ),
                    }
                ),
            )
            context = InputTag("mlflow.data.context", "training")
            self.client.log_inputs(self.run_id, [DatasetInput(data, [context])])
        tags = {f"resumed.{k}": v for k, v in wanted.items() if stored.get(k, v) != v}
        tags |= {k: shorten(v, _TAG_CHARS) for k, v in self.ids.items() if v}
        tags = {k: v for k, v in tags.items() if run.data.tags.get(k) != v}
        if tags:
            self.client.log_batch(self.run_id, tags=[RunTag(k, v) for k, v in tags.items()])
        for start in range(0, len(fresh), _PARAMS_PER_BATCH):
            part = fresh[start : start + _PARAMS_PER_BATCH]
            self.client.log_batch(self.run_id, params=part)

    # ---- events ----

    def deliver(self, events: list[Event]) -> None:
        """Send a list of events of one kind to the server, as `shipping.batches` makes them."""
        from mlflow.entities import RunTag

        kind = events[0]["kind"]
        if kind == "metrics":
            self._metrics([m for event in events for m in self._values(event, event["values"])])
        elif kind == "start":
            for tag in (PRECISION_TAG, DEVICE_TAG):
                if said := events[-1].get(tag):
                    self.client.set_tag(self.run_id, tag, said)
            on_what = environment_tags(events[-1].get("environment", {}))
            self.client.log_batch(self.run_id, tags=[RunTag(k, v) for k, v in on_what.items()])
        elif kind == "diagnosis":
            names = ", ".join(one["name"] for one in events[-1]["found"])
            self.client.set_tag(self.run_id, DIAGNOSIS_TAG, names or "healthy")
        elif kind == "image":
            for event in events:
                self._image(event)
        elif kind == "checkpoint":
            for event in events:
                self._checkpoint(event)

    def _values(
        self, event: Mapping[str, Any], values: Mapping[str, Any], **more: str
    ) -> list[Metric]:
        from mlflow.entities import Metric

        return [
            Metric(
                re.sub(r"[^\w\-./: ]", "_", key), float(x), event["time_ms"], event["nimg"], **more
            )
            for key, x in values.items()
            if isinstance(x, int | float)
        ]

    def _metrics(self, metrics: list[Metric]) -> None:
        for start in range(0, len(metrics), _METRICS_PER_BATCH):
            self.client.log_batch(self.run_id, metrics=metrics[start : start + _METRICS_PER_BATCH])

    def _image(self, event: Mapping[str, Any]) -> None:
        """Put a grid where the UI looks for images by step. `MlflowClient.log_image` would give the
        file a random name, so that a grid sent twice would stand there twice."""
        path = self.run_dir / event["path"]
        if not path.is_file():
            log.warning("%s is gone: not shown in MLflow", path)
            return
        key = Path(event["path"]).parent.name or "images"
        name = uuid.uuid5(uuid.NAMESPACE_URL, f"{self.run_id}/{event['path']}")
        stem = f"{key}+step+{event['nimg']}+timestamp+{event['time_ms']}+{name}"
        with tempfile.TemporaryDirectory() as folder, Image.open(path) as picture:
            full, small = Path(folder, f"{stem}.png"), Path(folder, f"{stem}+compressed.webp")
            picture.save(full, pnginfo=kept(picture))
            preview = picture.convert("RGB")
            preview.thumbnail((256, 256))
            preview.save(small)
            for file in (full, small):
                self.client.log_artifact(self.run_id, str(file), "images")
        self.client.set_tag(self.run_id, "mlflow.loggedImages", True)

    def _checkpoint(self, event: Mapping[str, Any]) -> None:
        """Send a scored checkpoint: its weights as a logged model, and its scores."""
        if not event.get("scores"):
            return
        model_id = logged_model.deliver(
            self.client, self.experiment_id, self.run_id, self.run_dir, event
        )
        data = {
            "dataset_name": dataset_name(self.config),
            "dataset_digest": self.index.content_hash[:_DIGEST_CHARS],
        }
        self._metrics(self._values(event, event["scores"], model_id=model_id, **data))
        best, measure = run_table.best_until(read_events(self.run_dir), event["nimg"])
        if measure is not None:
            self._metrics(self._values(event, best))
            self.client.set_tag(self.run_id, run_table.MEASURE_TAG, measure)
