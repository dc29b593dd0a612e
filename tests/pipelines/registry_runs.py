"""Run folders as the trainer leaves them, made in a moment: for the tests of the registry side."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from gan_train.adversary import Clock
from gan_train.config import Config
from gan_train.data.index import Index, ShardInfo, content_hash
from gan_train.files.atomic import write_json
from gan_train.metrics.protocol import Protocol
from gan_train.runs.checkpoint import FOLDER, save_generator
from gan_train.runs.events import LOG_NAME, EventLog, read_events

METRIC = "fd_efficientnet_lite0"
CLASSES = ("7", "A", "B")


def config(workspace: Path, **registry: Any) -> Config:
    """A class-conditional ProGAN for 8x8 grey images, some 10,000 weights."""
    return Config.model_validate(
        {
            "name": "tiny",
            "workspace": str(workspace),
            "data": {
                "source": "pictures/letters.zip",
                "resolution": 8,
                "colour": "grey",
                "classes": "folder",
                "licence": "OFL-1.1",
            },
            "family": {
                "name": "progan",
                "conditional": True,
                "z_dim": 8,
                "fmap_max": 8,
                "fade_kimg": 1,
                "stable_kimg": 1,
            },
            "registry": registry,
        }
    )


def index(salt: str = "") -> Index:
    """A data set of 300 images; another salt, another content hash."""
    shard = ShardInfo(
        name="shard-000000.tar",
        samples=300,
        bytes=307200,
        sha256=hashlib.sha256(salt.encode()).hexdigest(),
        offsets=tuple(range(0, 300 * 1024, 1024)),
    )
    transform = {"resize": "lanczos"}
    return Index(
        content_hash=content_hash([shard], transform),
        samples=300,
        resolution=8,
        channels=1,
        classes=CLASSES,
        class_counts=(100, 100, 100),
        transform=transform,
        quarantined=0,
        shards=(shard,),
    )


def protocol(data: Index, images: int = 2000) -> Protocol:
    return {
        "data": data.content_hash,
        "extractor": "efficientnet_lite0",
        "weights": "ab" * 32,
        "resize": "bilinear 224",
        "images": images,
        "reference": f"the first {images} real images in stored order",
        "null_images": images // 2,
    }


class Run:
    """Writes into a run's folder what the trainer writes."""

    def __init__(self, config: Config, index: Index, name: str = "run") -> None:
        self.config, self.index, self.scored_on = config, index, index
        self.folder = config.workspace / name
        self.folder.mkdir(parents=True, exist_ok=True)

    def append(self, kind: str, nimg: int, **fields: Any) -> None:
        EventLog(self.folder).append(kind, nimg, **fields)

    def metrics(self, nimg: int, **values: float) -> None:
        self.append("metrics", nimg, values=values or {"loss/D": nimg / 1000, "loss/G": 0.5})

    def image(self, nimg: int) -> None:
        path = self.folder / "samples" / f"{nimg:012d}.png"
        path.parent.mkdir(exist_ok=True)
        picture = Image.effect_noise((320, 192), nimg % 97 + 1)
        picture.save(path)
        self.append("image", nimg, path=f"samples/{path.name}", caption="samples")

    def checkpoint(
        self, nimg: int, score: float, images: int = 2000, seed: int = 0, error: float | None = None
    ) -> Path:
        """Untrained weights, different for each `nimg` and seed."""
        folder = self.folder / FOLDER / f"{nimg:012d}"
        folder.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(nimg + seed)
        adversary = self.config.family.build(self.index.image_shape, self.config.train.batch)
        weights = {
            f"{name}.{key}": value
            for name in adversary.averaged
            for key, value in getattr(adversary, name).state_dict().items()
        }
        clock = Clock(nimg // 64, nimg)
        save_generator(folder, weights, self.config, self.index.image_shape, clock)
        scored = {
            "scores": {METRIC: score, f"{METRIC}_null": 5.25, "precision": 0.75, "kid": 0.01},
            "protocol": protocol(self.scored_on, images),
        }
        if error is not None:
            scored["scores"][f"{METRIC}_se"] = error
        write_json(folder / "scores.json", scored)
        path = str(folder.relative_to(self.folder))
        level = {"precision": "bf16", "resolution": float(self.index.resolution), "alpha": 1.0}
        self.append("checkpoint", nimg, path=path, **scored, **level)
        return folder

    def end(self, nimg: int, status: str = "finished") -> None:
        self.append("end", nimg, status=status)

    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / LOG_NAME).read_text().splitlines()]


def logged_metrics(client: Any, run_id: str) -> list[tuple[str, int, float]]:
    """All (key, step, value) that stand in MLflow, repetitions included, sorted."""
    found = []
    for key in client.get_run(run_id).data.metrics:
        found += [(m.key, m.step, m.value) for m in client.get_metric_history(run_id, key)]
    return sorted(found)


def written_metrics(run: Run) -> list[tuple[str, int, float]]:
    """What `logged_metrics` must be, by the log's present."""
    written = []
    best = math.inf, 0.0
    for event in read_events(run.folder):
        values = event.get("values") or event.get("scores") or {}
        if event["kind"] == "checkpoint":
            best = min(best, (values[METRIC], event["nimg"] / 1000))
            told = {"best/score": best[0], "best/kimg": best[1], "best/reference": 5.25}
            values = values | told
        written += [(key, event["nimg"], float(value)) for key, value in values.items()]
    return sorted(written)


class Killed(BaseException):
    """Stands for a kill: nothing catches it."""


def kill_after(patch: pytest.MonkeyPatch, writers: Sequence[str], nth: int) -> None:
    """Let the process die right after the nth call of MLflow's client was obeyed: no later one is,
    not even of what cleans up."""
    from mlflow import MlflowClient

    calls, last = 0, ""

    def counted(name: str) -> Any:
        real = getattr(MlflowClient, name)

        def call(self: MlflowClient, *args: Any, **kwargs: Any) -> Any:
            nonlocal calls, last
            if calls >= nth:
                raise Killed(last)
            result = real(self, *args, **kwargs)
            calls, last = calls + 1, name
            if calls == nth:
                raise Killed(name)
            return result

        return call

    for name in writers:
        patch.setattr(MlflowClient, name, counted(name))


def image_files(client: Any, run_id: str) -> list[str]:
    return sorted(file.path for file in client.list_artifacts(run_id, "images"))


def models_of(client: Any, run_id: str) -> list[tuple[str, str]]:
    experiment = client.get_run(run_id).info.experiment_id
    found = client.search_logged_models([experiment], f"source_run_id = '{run_id}'")
    return sorted((model.name, str(model.status)) for model in found)


WRITERS = [
    *("create_run", "log_batch", "log_dict", "log_inputs", "log_artifact", "set_tag"),
    *("create_logged_model", "log_outputs", "set_logged_model_tags", "log_model_artifacts"),
    *("finalize_logged_model", "set_terminated", "update_run"),
]
"""The calls of MLflow's client that a delivery makes to change something there."""
