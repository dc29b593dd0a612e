"""All that is recorded of a registered version, for two of them to be compared. Only reads, but for
`attach`."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gan_train.config import Config
from gan_train.errors import UserError
from gan_train.metrics.protocol import Protocol
from pipelines.registry.aliases import between_seeds
from pipelines.registry.evidence import Deviation
from pipelines.registry.promotion import Standing, version_standing
from pipelines.registry.provenance import COMMIT_TAG, VERSION_TAG
from pipelines.registry.tracking import DEVICE_TAG, connect_to_read, failures, tracking_uri
from pipelines.registry.versions import CARDS, download, find_version

if TYPE_CHECKING:
    from mlflow import MlflowClient

_LOGGED_MODEL = "logged_model"
_DIRTY = "mlflow.source.git.dirty"
_RESUMED = "resumed."


@dataclass(frozen=True)
class Dossier:
    """A version; what is unknown is empty, as most is of an import. All text is untrusted."""

    model: str
    number: int
    registered_ms: int
    """When it was registered, in milliseconds since 1970."""
    run: str
    folder: Path
    """Its generator."""
    settings: Mapping[str, str]
    """By dotted key, as they were when training ended."""
    scores: Mapping[str, float]
    protocol: Protocol
    standing: Standing
    """Its deciding score."""
    seeds: Deviation | None
    """How far scores of its model lie apart by the seed alone; None where that is not known."""
    images_seen: int
    speeds: tuple[tuple[int, float], ...]
    """Images per second at each tick, with the number of images until then."""
    memory_gib: float | None
    data_hash: str
    samples: int | None
    """How many images the data set holds."""
    class_counts: Mapping[str, int]
    """Empty where the data set has no classes, or the run is older than this record."""
    commit: str
    dirty: bool
    """Whether files had been changed since the commit."""
    library: str
    device: str
    grid: bytes | None
    """The PNG file of the samples on its card; None where there is none."""

    @property
    def address(self) -> str:
        """Such as `models:/progan-demo/3`."""
        return f"models:/{self.model}/{self.number}"


def dossier(config: Config, version_or_alias: str) -> Dossier:
    """What is recorded of a version. Raises UserError when there is no such version, or the
    tracking server is away."""
    try:
        client = connect_to_read(config)
        found = find_version(client, config, version_or_alias)
        run = client.get_run(found.run_id) if found.run_id else None
        params, told = (run.data.params, run.data.tags) if run else ({}, {})
        images = int(found.tags.get("images_seen", 0))
        history: dict[str, list[tuple[int, float]]] = {}
        for key in ("images_per_second", "memory_gib"):
            measured = client.get_metric_history(run.info.run_id, key) if run else []
            history[key] = sorted({(m.step, m.value) for m in measured if m.step <= images})
        inputs = run.inputs.dataset_inputs if run and run.inputs else []
        standing = version_standing(found.version, found.tags)
        seeds = between_seeds(client, found.name, standing, config.registry.seed_deviation)
        grid = _grid(client, run.info.run_id, images) if run else None
        profile: dict[str, Any] = json.loads(inputs[0].dataset.profile or "{}") if inputs else {}
    except failures() as error:
        raise _away(config, error) from error
    resumed = {k.removeprefix(_RESUMED): v for k, v in told.items() if k.startswith(_RESUMED)}
    return Dossier(
        model=found.name,
        number=int(found.version),
        registered_ms=int(found.creation_timestamp),
        run=str(run.info.run_name) if run else "",
        folder=download(config, str(found.version)),
        settings=params | resumed,
        scores=json.loads(found.tags.get("scores", "{}")),
        protocol=json.loads(found.tags.get("protocol", "{}")),
        standing=standing,
        seeds=seeds,
        images_seen=images,
        speeds=tuple(history["images_per_second"]),
        memory_gib=max((value for _, value in history["memory_gib"]), default=None),
        data_hash=found.tags.get("data_hash", ""),
        samples=profile.get("num_rows"),
        class_counts=profile.get("class_counts", {}),
        commit=found.tags.get("git_commit", told.get(COMMIT_TAG, "")),
        dirty=told.get(_DIRTY) == "true",
        library=found.tags.get(VERSION_TAG, ""),
        device=told.get(DEVICE_TAG, ""),
        grid=grid,
    )


def _grid(client: MlflowClient, run_id: str, images: int) -> bytes | None:
    """The newest grid among the run's cards that was drawn with at most so many images."""
    cards = [file.path for file in client.list_artifacts(run_id, CARDS)]
    there = [path for path in sorted(cards) if int(Path(path).stem) <= images]
    if not there:
        return None
    with tempfile.TemporaryDirectory() as folder:
        return Path(client.download_artifacts(run_id, there[-1], folder)).read_bytes()


def attach(config: Config, version: int, name: str, page: str) -> str:
    """Put a page beside a version, as the artifact `diff/<name>` of its logged model; returns where
    it lies. Raises UserError when the tracking server is away."""
    try:
        client = connect_to_read(config)
        found = find_version(client, config, str(version))
        model_id = found.tags[_LOGGED_MODEL]
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, name).write_text(page, encoding="utf-8")
            client.log_model_artifacts(model_id, folder, "diff")
    except failures() as error:
        raise _away(config, error) from error
    return f"diff/{name} of the logged model {model_id}"


def _away(config: Config, error: Exception) -> UserError:
    first = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
    return UserError(
        f"MLflow at {tracking_uri(config)} does not do what is asked ({first}): once it is back, "
        "type the command again"
    )
